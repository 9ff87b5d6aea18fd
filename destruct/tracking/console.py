"""What the person in front of the screen sees: progress while it runs, one table when it ends."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from destruct.secrets import masked
from destruct.tracking.summary import Summary


class _Willing(Console):
    """Falls silent where nobody reads any more, and lets the run go on."""

    def on_broken_pipe(self) -> None:
        """Instead of SystemExit."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in its buffer goes there


class Screen:
    """Progress bars on a terminal, plain lines where output is piped, silence on every rank but the first."""

    def __init__(self, first_rank: bool):
        width = None if Console().is_terminal else 140
        self.console = _Willing(quiet=not first_rank, width=width, highlight=False, markup=False)
        self.live = first_rank and self.console.is_terminal

    def say(self, line: str) -> None:
        """One line, however long where output is piped; none where the terminal has gone."""
        with suppress(OSError):
            self.console.print(masked(line), soft_wrap=not self.console.is_terminal)

    @contextmanager
    def phase(self, name: str, total: int, done: int = 0) -> Iterator["Phase"]:
        """Show the progress of `total` steps, of which `done` were made before a resume."""
        left = TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=8))
        columns = (TextColumn("{task.description:<8}"), BarColumn(16), MofNCompleteColumn(), left)
        status = TextColumn("{task.fields[status]}", markup=False)
        with Progress(*columns, status, console=self.console, disable=not self.live) as progress:
            progress.add_task(name, total=total, completed=done, status="")
            yield Phase(self, progress, name, total, done)

    @contextmanager
    def count(self, name: str, what: str) -> Iterator["Count"]:
        """Show work on documents of which nobody knows how many there are."""
        columns = (TextColumn("{task.description}"), BarColumn(16), TextColumn("{task.fields[status]}", markup=False))
        with Progress(*columns, console=self.console, disable=not self.live, transient=True) as progress:
            progress.add_task(f"{name} {what}", total=None, status="")
            yield Count(self, progress, f"{name} {what}")

    def table(self, summary: Summary) -> None:
        """The end of a run."""
        losses = Table(title="validation loss, nats per token", title_justify="left")
        for heading in ("source", "before", "after warm-up", "after PPO"):
            losses.add_column(heading, justify="left" if heading == "source" else "right")
        columns = summary.validation_loss_before, summary.validation_loss_after_warmup, summary.validation_loss_after
        for name in columns[-1]:
            losses.add_row(name, *(_loss(column, name, columns[-1]) for column in columns))
        facts = Table(show_header=False)
        facts.add_column()
        facts.add_column(overflow="fold")  # a path in full, where the default would cut it short
        facts.add_row("reward", f"{summary.reward_before:.4f} -> {summary.reward_after:.4f}")
        kl, bound = summary.kl_max, summary.kl_bound
        where = "inside" if kl <= bound else "OUTSIDE"
        facts.add_row("largest KL to the reference", f"{kl:.4f}, {where} its bound {bound}")
        facts.add_row("updates, rounds", f"{summary.updates}, {summary.rounds}")
        if summary.skipped_steps:
            facts.add_row("SKIPPED STEPS", f"{summary.skipped_steps}: a loss or a gradient was not finite")
        facts.add_row("tokens", f"{summary.tokens:,}")
        facts.add_row("seconds, peak memory", f"{summary.seconds:.0f} s, {summary.peak_rss_mib:.0f} MiB per rank")
        if summary.best_update is not None:
            facts.add_row("best", f"{summary.best_validation_loss:.4f}, after update {summary.best_update}")
        for name, path in summary.files.items():
            facts.add_row(name, path)
        with suppress(OSError):  # a terminal that has gone
            self.console.print(losses)
            self.console.print(facts)


def _loss(column: dict[str, float], name: str, now: dict[str, float]) -> str:
    """A cell of the table; a dash for a source that was not there yet, and for a mean over other sources than now."""
    absent = name not in column or (name == "mean" and column.keys() != now.keys())
    return "-" if absent else f"{column[name]:.4f}"


class Count:
    """Documents and tokens done, on the screen."""

    def __init__(self, screen: Screen, progress: Progress, name: str):
        self.screen, self.progress, self.name = screen, progress, name
        self._began = self._spoken = time.monotonic()

    def __call__(self, documents: int, tokens: int) -> None:
        """So many by now.  Piped, a line every ten seconds."""
        now = time.monotonic()
        status = f"{documents:,} documents, {tokens:,} tokens, {tokens / (now - self._began):,.0f} tokens/s"
        self.progress.update(self.progress.task_ids[0], status=status)
        if not self.screen.live and now - self._spoken >= 10:
            self.screen.say(f"{self.name:<10} {status}")
            self._spoken = now


class Phase:
    """One stretch of the run on the screen."""

    def __init__(self, screen: Screen, progress: Progress, name: str, total: int, done: int):
        self.screen, self.progress, self.name, self.total, self.done = screen, progress, name, total, done
        self._spoken = time.monotonic() - 60

    def advance(self, status: str) -> None:
        """One step more.  Piped, at most a line every two seconds, and the last."""
        self.done += 1
        self.progress.update(self.progress.task_ids[0], completed=self.done, status=status)
        now = time.monotonic()
        if not self.screen.live and (now - self._spoken >= 2 or self.done == self.total):
            self.screen.say(f"{self.name:<10} {self.done}/{self.total}  {status}")
            self._spoken = now
