"""Long work on the screen: a bar on a terminal, a line every ten seconds where output is piped; on standard error.

with progress("exporting", size, "B") as tell:
    tell(len(piece))
"""

import os
import sys
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import Protocol, TextIO, TypeVar

from rich.console import Console
from rich.filesize import decimal
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from destruct import streams

T = TypeVar("T")

EVERY_S = 10.0
"""Between two lines where output is piped; shorter work has none."""
SHORTEST_S = 1.0
"""Of durations that are worth a word."""
PER_SECOND = 2
"""How often a terminal is drawn anew."""


class Tell(Protocol):
    """Is told that so much more is done.

    Args:
        total: how much there is to do of what begins now, where that was not known before; then `amount` is 0.
        more: words behind the count.
    """

    def __call__(self, amount: int = 1, total: int | None = None, more: str = "") -> None: ...


def tell_nobody(amount: int = 1, total: int | None = None, more: str = "") -> None:
    """A `Tell` for whoever does not look."""


class Steady(Console):
    """Never hides the cursor, which nobody would bring back where the process is killed.  Where nobody reads any more
    it falls silent, and lets the work go on."""

    def show_cursor(self, show: bool = True) -> bool:
        """Leave it as it is."""
        return False

    def on_broken_pipe(self) -> None:
        """Instead of SystemExit."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())  # what is left in its buffer goes there


class Work:
    """How far something has come.

    Args:
        name: of what is done.
        total: how much there is to do; None where nobody knows.
        unit: of what is counted, in the plural; "B" for bytes.
        done: how much was done before.
    """

    def __init__(self, name: str, total: int | None = None, unit: str = "", done: int = 0):
        self.name, self.total, self.unit, self.done = name, total, unit, done
        self.began = self.at = time.monotonic()
        self.more = ""  # words behind the count
        self._before = done
        self._lock = threading.Lock()

    def advance(self, amount: int, now: float) -> None:
        """So much more is done; any thread may call it.

        Args:
            now: time.monotonic().
        """
        with self._lock:
            self.done += amount
            self.at = now

    def expect(self, total: int, now: float) -> None:
        """So much is to be done from now on, and nothing of it was before."""
        with self._lock:
            self.total, self.done, self._before = total, 0, 0
            self.began = self.at = now

    def count(self) -> str:
        """In words: `3/12 files`, `1.2 GB of 3.4 GB`."""
        if self.unit == "B":
            return decimal(self.done) + ("" if self.total is None else f" of {decimal(self.total)}")
        count = f"{self.done:,}" if self.total is None else f"{self.done:,}/{self.total:,}"
        return f"{count} {self.unit}".strip() + self.more

    def time(self, now: float) -> str:
        """What is left at the pace so far; what it took, where all is done or nobody knows how much there is; nothing
        of less than a second."""
        if self.total is None or self.done >= self.total:
            seconds, words = now - self.began, "in {}"
        else:
            made = self.done - self._before
            pace = (self.at - self.began) / made if made else 0.0
            seconds, words = pace * (self.total - self.done) - (now - self.at), "{} left"
        return words.format(clock(seconds)) if seconds >= SHORTEST_S else ""

    def line(self, now: float) -> str:
        """As it is said where output is piped."""
        return f"{self.name:<10} {self.count()}  {self.time(now)}".rstrip()

    def bar(self, width: int | None = 24) -> ProgressBar:
        """What is done of all, moving where that is not known."""
        return ProgressBar(self.total, self.done, width, pulse=self.total is None, complete_style="cyan")

    def __rich__(self) -> Table:
        return row(self.name, self.bar(None), self.count(), self.time(time.monotonic()))


def row(name: str, bar: ProgressBar, *words: str) -> Table:
    """A name, a bar as wide as there is room, and words, all in one line."""
    table = Table.grid(padding=(0, 2, 0, 0), expand=True)
    table.add_column(no_wrap=True, min_width=9)
    table.add_column(ratio=1, min_width=4)
    for _ in words:
        table.add_column(no_wrap=True)
    table.add_row(name, bar, *words)
    return table


def clock(seconds: float) -> str:
    """A duration: 0:07, 12:34, 1:02:03, 2 days, 1:02:03."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else str(timedelta(minutes=minutes, seconds=rest))


@contextmanager
def progress(
    name: str, total: int | None = None, unit: str = "", still: bool = False, console: Console | None = None
) -> Iterator[Tell]:
    """Show how far a block has come.

    Args:
        name, total, unit: as for `Work`.
        still: draw when something is done and at no other time, where what is done is timed.
        console: where; the person's standard error, as it is when the block begins, unless one is given.

    Yields:
        What any thread may call.
    """
    work = Work(name, total, unit)
    console = console or Steady(file=streams.err(), highlight=False, markup=False)
    spoken, live = work.began, _live(work, console, still)

    def tell(amount: int = 1, total: int | None = None, more: str = "") -> None:
        nonlocal spoken
        now = time.monotonic()
        if total is not None:
            work.expect(total, now)
        work.advance(amount, now)
        work.more = more
        if still and live is not None:
            live.refresh()
        if live is None and now - spoken >= EVERY_S:
            spoken = now
            with suppress(OSError):  # nobody reads any more
                console.print(work.line(now), soft_wrap=True)

    with nullcontext() if live is None else live:
        if live is not None:
            live.refresh()
        yield tell


def _live(work: Work, console: Console, still: bool) -> Live | None:
    if not console.is_interactive:
        return None
    return Live(
        get_renderable=lambda: work,
        console=console,
        auto_refresh=not still,
        refresh_per_second=PER_SECOND,
        transient=True,
        redirect_stdout=_is_terminal(sys.stdout),  # what goes to a file, or nowhere, still goes there
        redirect_stderr=_is_terminal(sys.stderr),
    )


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def tracked(items: Collection[T], name: str, unit: str = "") -> Iterator[T]:
    """The items one by one, with a bar of those that are done; nothing is drawn while one of them is."""
    with progress(name, len(items), unit, still=True) as tell:
        for item in items:
            yield item
            tell()
