"""Signals that ask a run to stop: noted at once, heeded where its state is whole."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Schedulers send the first and the last before they take a machine away, a person the second."""

APART_S = 1.0
"""Two Ctrl-C of a person are at least so far apart; closer ones came through the terminal and the launcher."""


class Stopped(BaseException):
    """A run that was asked to stop has stopped, and nothing is lost.  No `except Exception` takes it.

    Args:
        number: of the signal.
        saved: one line on what is left of the run.
    """

    def __init__(self, number: int, saved: str):
        super().__init__(f"stopped by {signal.Signals(number).name}: {saved}")


class Signals:
    """Notes the first signal that asks to stop; before `defer`, and at a second Ctrl-C, the process stops at once."""

    def __init__(self) -> None:
        self.received = 0  # number of the first one; 0 while there is none
        self._deferred, self._since = False, 0.0

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Within the block they come here; in the main thread alone."""
        before = {number: signal.signal(number, self._note) for number in ASKING}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def defer(self) -> None:
        """From here on there is something to save: `received` is looked at where that can be done."""
        self._deferred = True

    def _note(self, number: int, _: FrameType | None) -> None:
        if not self._deferred:
            raise Stopped(number, "the run had not begun")
        now = time.monotonic()
        if self.received and number == signal.SIGINT and now - self._since > APART_S:
            raise KeyboardInterrupt
        self.received, self._since = self.received or number, now
