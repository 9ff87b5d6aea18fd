"""What the person in front of the screen sees: progress while it runs, one table when it ends."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from rich.console import Console, ConsoleDimensions, Group, RenderableType
from rich.live import Live
from rich.table import Table

from destruct import streams
from destruct.heartbeat import HEART
from destruct.progress import EVERY_S, PER_SECOND, Steady, Work
from destruct.secrets import masked
from destruct.tracking.live import Activity, Board, Standing, finished, what_goes_on
from destruct.tracking.summary import Summary

PIPED = 140
"""Columns where output goes to no terminal."""


class Screen:
    """A board on a terminal, plain lines where output is piped, silence on every rank but the first.

    Args:
        quiet: silence on that one, too; what it would say stands in its log.
        file: where; standard output unless one is given.
    """

    def __init__(self, first_rank: bool, quiet: bool = False, file: TextIO | None = None):
        self._first_rank, self._quiet = first_rank, quiet or not first_rank
        file = file or streams.out()
        width = None if Console(file=file).is_terminal else PIPED
        self.console = Steady(file=file, quiet=self._quiet, width=width, highlight=False, markup=False)
        self.live = self.console.is_interactive and not self._quiet
        if self.console.is_terminal:
            self._fit()
        self._board: list[RenderableType] = []  # its parts, from top to bottom
        self._shown = 0  # blocks that show it
        self._live: Live | None = None
        self._spoken = 0.0

    def say(self, line: str) -> None:
        """One line, however long where output is piped; none where the terminal has gone."""
        if self._first_rank:
            logging.getLogger(__name__).info("%s", line)
        with suppress(OSError):
            self.console.print(masked(line), soft_wrap=not self.console.is_terminal)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Within the block, or one of several of them, the board is on the terminal; piped, long phases are told."""
        self._shown += 1
        if self._shown == 1 and self.live:
            self._live = Live(
                get_renderable=self._drawn,
                console=self.console,
                refresh_per_second=PER_SECOND,
                transient=True,
                redirect_stdout=False,  # what is printed is none of the person's
                redirect_stderr=False,
            )
        if self._shown == 1 and not self._quiet and not self.live:
            HEART.listener = self._tell
        try:
            if self._shown == 1 and self._live is not None:
                with suppress(OSError):  # here and below: a terminal that has gone
                    self._live.start()
            yield
        finally:
            self._shown -= 1
            if self._shown == 0:
                self._end()

    def _end(self) -> None:
        HEART.listener = None
        live, self._live = self._live, None
        if live is not None:
            with suppress(OSError):
                live.stop()

    def _draw(self) -> None:
        if self._live is not None:
            with suppress(OSError):
                self._live.refresh()

    def _fit(self) -> None:
        """Be as large as the terminal that is written to: those that rich would ask may be a log, or nothing."""
        with suppress(OSError, ValueError):
            there = os.get_terminal_size(self.console.file.fileno())
            if there.columns and there.lines and "COLUMNS" not in os.environ:
                self.console.size = ConsoleDimensions(there.columns, there.lines)

    def _drawn(self) -> Group:
        self._fit()
        tells_itself = any(isinstance(part, Board) for part in self._board)
        return Group(*self._board, *([] if tells_itself else [Activity()]))

    def _tell(self) -> None:
        now = time.monotonic()
        if now - max(self._spoken, HEART.since) >= EVERY_S:
            self._spoken = now
            self.say(what_goes_on())

    @contextmanager
    def _with(self, part: RenderableType) -> Iterator[None]:
        with self.shown():
            self._board.append(part)
            self._draw()
            try:
                yield
            finally:
                self._board.remove(part)
                self._draw()  # or the next line would bring it back

    @contextmanager
    def phase(self, name: str, total: int, done: int = 0) -> Iterator["Phase"]:
        """Show the progress of `total` steps, of which `done` were made before a resume."""
        board = Board(Work(name, total, done=done))
        try:
            with self._with(board):
                yield Phase(self, board)
        finally:
            if self.live:
                with suppress(OSError):
                    self.console.print(finished(board.work, board.status))

    @contextmanager
    def count(self, name: str, what: str) -> Iterator["Count"]:
        """Show work on documents of which nobody knows how many there are."""
        work = Work(f"{name} {what}", unit="documents")
        with self._with(work):
            yield Count(self, work)

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

    def __init__(self, screen: Screen, work: Work):
        self.screen, self.work = screen, work
        self._spoken = work.began

    def __call__(self, documents: int, tokens: int) -> None:
        """So many by now.  Piped, a line every ten seconds."""
        now = time.monotonic()
        self.work.advance(documents - self.work.done, now)
        self.work.more = f", {tokens:,} tokens, {tokens / (now - self.work.began):,.0f} tokens/s"
        if not self.screen.live and now - self._spoken >= EVERY_S:
            self.screen.say(f"{self.work.name:<10} {self.work.count()}")
            self._spoken = now


class Phase:
    """One stretch of the run on the screen."""

    def __init__(self, screen: Screen, board: Board):
        self.screen, self.board = screen, board
        self._spoken = board.work.began - 60

    def advance(self, status: Standing | str) -> None:
        """One step more.  Piped, at most a line every two seconds, and the last."""
        work, now = self.board.work, time.monotonic()
        work.advance(1, now)
        self.board.take(status)
        if not self.screen.live and (now - self._spoken >= 2 or work.done == work.total):
            left = work.time(now)
            self.screen.say(f"{work.name:<10} {work.done}/{work.total}  {status}" + (f"  {left}" if left else ""))
            self._spoken = now
