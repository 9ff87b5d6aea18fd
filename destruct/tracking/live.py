"""The board of a terminal: where a run stands, in a few lines that fit it."""

import time
from collections import deque
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from destruct.heartbeat import HEART, START
from destruct.progress import Work, clock, row

MIDDLE, WIDE = 60, 112
"""Columns from which on the time spent and the trend are shown; from which on two figures stand beside each other."""
LABEL, CELL, NAME = 11, 33, 18
"""Columns of a line's label, of a source with its bar at least, and of its name at most."""
MOST_ROWS, LINES = 6, 9
"""Rows of the sources' bars, and the lines of a terminal that are left to all else."""
STEPS = "▁▂▃▄▅▆▇█"
SHOWN = 16
"""Updates whose rewards are drawn."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known after an update."""

    reward: float  # of the update
    reward_first: float  # means over sources, of the first tenth of the updates so far
    reward_last: float  # and of the last
    kl: float  # nats per token, to the reference
    kl_bound: float
    ptx_loss: float
    entropy: float
    tokens_per_s: float
    weights: dict[str, float]  # share of each source
    validation: float | None = None  # mean, nats per token; None before any
    best: float | None = None  # that of the best checkpoint
    best_update: int | None = None

    def __str__(self) -> str:
        words = f"reward {self.reward:.3f}  KL {self.kl:.4f} of {self.kl_bound}  ptx {self.ptx_loss:.3f}"
        words += f"  entropy {self.entropy:.2f}"
        words += "" if self.validation is None else f"  val {self.validation:.3f}"
        return f"{words}  {self.tokens_per_s:,.0f} tok/s"


class Board:
    """One stretch of the run: a bar, what is going on, and what is known since the last step.

    Args:
        work: the steps of the stretch.
    """

    def __init__(self, work: Work):
        self.work = work
        self.status: Standing | str = ""
        self._rewards: deque[float] = deque(maxlen=SHOWN)

    def take(self, status: Standing | str) -> None:
        """What is known after one step more."""
        self.status = status
        if isinstance(status, Standing):
            self._rewards.append(status.reward)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        work, now = self.work, time.monotonic()
        left, spent = work.time(now), f"{clock(now - work.began)}, " if options.max_width >= MIDDLE else ""
        yield row(work.name, work.bar(None), work.count(), f"{spent}{left}" if left else "")
        yield Text.assemble((f"{'now':<{LABEL}}", "dim"), what_goes_on(), no_wrap=True, overflow="ellipsis")
        if not isinstance(self.status, Standing):
            yield Text(self.status, no_wrap=True, overflow="ellipsis")
            return
        has_room = options.max_width >= MIDDLE and not options.ascii_only
        yield _facts(self.status, steps(list(self._rewards)) if has_room else "", options.max_width)
        yield from weights(self.status.weights, options.max_width, options.size.height - LINES)


def what_goes_on() -> str:
    """The phase, and how far it is where that is counted."""
    percent = f" {HEART.done / HEART.total:.0%}" if HEART.total else ""
    return "" if HEART.phase == START else f"{HEART.phase}{percent}"


class Activity:
    """What goes on outside of any stretch."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if HEART.phase == START:
            return
        bar = _bar(HEART.done, HEART.total or None)
        percent = f"{HEART.done / HEART.total:.0%}" if HEART.total else ""
        yield row(HEART.phase, bar, percent, clock(time.monotonic() - HEART.since))


def steps(values: list[float]) -> str:
    """Values as a line of blocks, the lowest and the highest as far apart as blocks can show."""
    finite = [value for value in values if value == value and abs(value) != float("inf")]
    if len(finite) < 2:
        return ""
    low, spread = min(finite), max(finite) - min(finite)
    return "".join(STEPS[round((value - low) / spread * (len(STEPS) - 1)) if spread else 0] for value in finite)


def _facts(standing: Standing, trend: str, width: int) -> RenderableType:
    kl = _bar(_share(standing.kl, standing.kl_bound), 1.0, 16, _alarm(standing))
    kl_line = Table.grid(padding=(0, 1, 0, 0))
    for _ in range(3):
        kl_line.add_column(no_wrap=True)
    kl_line.add_row(f"{standing.kl:.4f} of {standing.kl_bound}", kl, "" if _inside(standing) else "OUTSIDE")
    validation = "-" if standing.validation is None else f"{standing.validation:.4f}"
    if standing.best is not None:
        validation += f", best {standing.best:.4f} after update {standing.best_update}"
    reward = f"{standing.reward:.3f}, from {standing.reward_first:.3f} to {standing.reward_last:.3f}  {trend}"
    facts: list[tuple[str, RenderableType]] = [
        ("reward", reward),
        ("KL", kl_line),
        ("validation", validation),
        ("speed", f"{standing.tokens_per_s:,.0f} tokens/s"),
    ]
    beside = 2 if width >= WIDE else 1
    grid = Table.grid(padding=(0, 1, 0, 0), expand=True)
    for _ in range(beside):
        grid.add_column(no_wrap=True, width=LABEL - 1, style="dim")
        grid.add_column(no_wrap=True, ratio=1, overflow="ellipsis")
    for start in range(0, len(facts), beside):
        grid.add_row(*(cell for fact in facts[start : start + beside] for cell in fact))
    return grid


def weights(shares: dict[str, float], width: int, height: int) -> list[RenderableType]:
    """The sources' shares as bars, the largest alone where not all fit.

    Args:
        height: lines that are left to them.
    """
    beside = max(1, (width - LABEL) // CELL)
    rows = max(1, min(MOST_ROWS, height))
    shown = shares
    if len(shares) > beside * rows:
        largest = sorted(shares, key=lambda name: -shares[name])[: beside * rows]
        shown = {name: shares[name] for name in largest}
    grid = Table.grid(padding=(0, 1, 0, 0), expand=True)
    grid.add_column(no_wrap=True, width=LABEL - 1, style="dim")
    for _ in range(min(beside, len(shown))):
        grid.add_column(no_wrap=True, max_width=NAME, overflow="ellipsis")
        grid.add_column(no_wrap=True)
        grid.add_column(ratio=1)
    top = max(shown.values())
    cells = [(name, f"{share:.3f}", _bar(share, top)) for name, share in shown.items()]
    for start in range(0, len(cells), beside):
        grid.add_row("" if start else "weights", *(part for cell in cells[start : start + beside] for part in cell))
    rest = len(shares) - len(shown)
    more = f"{'':<{LABEL}}and {rest} more: {sum(shares.values()) - sum(shown.values()):.3f} together"
    return [grid, *([Text(more, style="dim")] if rest else [])]


def _bar(value: float, total: float | None, width: int | None = None, style: str = "cyan") -> ProgressBar:
    """In one colour, full or not."""
    return ProgressBar(total, value, width, pulse=total is None, complete_style=style, finished_style=style)


def _inside(standing: Standing) -> bool:
    return standing.kl <= standing.kl_bound


def _share(kl: float, bound: float) -> float:
    return min(1.0, max(0.0, kl / bound)) if kl == kl else 1.0


def _alarm(standing: Standing) -> str:
    if not _inside(standing):
        return "red"
    return "green" if standing.kl <= standing.kl_bound / 2 else "yellow"


def finished(work: Work, status: Standing | str) -> Group:
    """What stays of a stretch when it is over."""
    line = row(work.name, work.bar(None), work.count(), work.time(time.monotonic()))
    return Group(line, Text(str(status))) if str(status) else Group(line)
