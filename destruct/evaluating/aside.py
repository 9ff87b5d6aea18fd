"""The screen of a command whose result goes to standard output: all that it says meanwhile goes to standard error."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from destruct.tracking.console import Screen

EVERY_S = 10.0
"""Between two lines where output is piped; the last step has one in any case."""


class Aside(Screen):
    """Progress bars where standard error is a terminal, plain lines elsewhere, silence on every rank but the first."""

    def __init__(self, first_rank: bool):
        super().__init__(first_rank)
        # As it is now: within `quiet` it is nowhere.
        self.console = type(self.console)(file=sys.stderr, quiet=not first_rank, highlight=False, markup=False)
        self.live = first_rank and self.console.is_terminal

    @contextmanager
    def steps(self, name: str, total: int) -> Iterator[Callable[[str], None]]:
        """Show how many of `total` steps are done.

        Yields:
            What is called after each, with a word on what it was of.
        """
        columns = (TextColumn("{task.description:<8}"), BarColumn(16), MofNCompleteColumn(), TimeRemainingColumn())
        word = TextColumn("{task.fields[word]}", markup=False)
        bar = Progress(
            *(*columns, word),
            console=self.console,
            disable=not self.live,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        task = bar.add_task(name, total=total, word="")
        done, spoken = 0, time.monotonic()

        def advance(word: str) -> None:
            nonlocal done, spoken
            done += 1
            bar.update(task, completed=done, word=word)
            if not self.live and (done == total or time.monotonic() - spoken >= EVERY_S):
                spoken = time.monotonic()
                self.say(f"{name:<10} {done}/{total}  {word}")

        with bar:
            yield advance
