"""Signals that ask a run to stop: noted at once, heeded where its state is whole."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from destruct import last_words, streams
from destruct.exits import Exit, leave

ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Schedulers send the first and the last before they take a machine away, a person the second."""

APART_S = 1.0
"""Two Ctrl-C of a person are at least so far apart; closer ones came through the terminal and the launcher."""

LINGER_S = 5.0
"""From a signal to the end of a process that cannot stop in words, as it waits for another rank outside of Python."""

NOT_BEGUN = "the run had not begun"


class Stopped(BaseException):
    """A run that was asked to stop has stopped, and nothing is lost.  No `except Exception` takes it.

    Args:
        number: of the signal.
        saved: one line on what is left of the run.
    """

    def __init__(self, number: int, saved: str):
        super().__init__(f"stopped by {signal.Signals(number).name}: {saved}")
        self.number = number


class Signals:
    """Notes the first signal that asks to stop; before `defer`, and at a second Ctrl-C, the process stops at once."""

    def __init__(self) -> None:
        self.received = 0  # number of the first one; 0 while there is none
        self._heeds = self._deferred = False
        self._since = 0.0

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Within the block they come here; in the main thread alone."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        before = {number: signal.signal(number, self._note) for number in ASKING}
        wakes = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self._heeds = True
        threading.Thread(target=self._insist, args=(reader,), name="signals", daemon=True).start()
        try:
            yield
        finally:
            self._heeds = False
            signal.set_wakeup_fd(wakes)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(writer)

    def _insist(self, reader: int) -> None:
        """End this process where there is nothing to save yet and its main thread does not come back to Python.

        Args:
            reader: pipe that gets the number of each signal as it comes, wherever the main thread is.
        """
        with open(reader, "rb", buffering=0) as numbers:
            for number in iter(lambda: numbers.read(1), b""):
                if number[0] in ASKING and not self._deferred:
                    self._linger(number[0])

    def _linger(self, number: int) -> None:
        time.sleep(LINGER_S)
        if not self._heeds or self._deferred:
            return
        last_words.failed()
        if os.environ.get("RANK", "0") == "0":
            with suppress(OSError):
                print(f"destruct: {Stopped(number, NOT_BEGUN)}", file=streams.err(), flush=True)
        leave(Exit.PREEMPTED)

    def defer(self) -> None:
        """From here on there is something to save: `received` is looked at where that can be done.

        Raises:
            Stopped: a signal came before, in a finalizer, from which Python lets no exception out.
        """
        self._deferred = True
        if self.received:
            raise Stopped(self.received, NOT_BEGUN)

    def _note(self, number: int, _: FrameType | None) -> None:
        if not self._deferred:
            self.received = number
            raise Stopped(number, NOT_BEGUN)
        now = time.monotonic()
        if self.received and number == signal.SIGINT and now - self._since > APART_S:
            raise KeyboardInterrupt
        self.received, self._since = self.received or number, now
