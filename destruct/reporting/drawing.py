"""Charts as SVG: what is drawn where, in numbers and words; `chart.html` puts them into elements.

A chart is as wide as the page lets it be, without a script: paths are in a plane of PLANE units that is stretched,
labels stand at shares of its width, and lines and letters keep their size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from destruct.reporting.charts import Chart, Line, css
from destruct.reporting.figures import Table, describe, table_of
from destruct.reporting.log import Floats, Series
from destruct.reporting.scales import Envelope, envelope, short, span_of, tick_words, ticks

PLANE = 2000, 1000
HEIGHT, SMALL = 190, 96
"""Pixels of a chart, and of one of many."""

HEIGHT, SMALL = 190, 96
"""Pixels of a chart, and of one of many."""

POINTS, POINTS_IN_ALL = 300, 7500
"""Of a line, and of all lines of a chart."""

DOTTED = 48
"""Points of a line up to which each is a dot, too."""

LABEL = 13
"""Pixels from one label to the next below it."""


@dataclass(frozen=True, slots=True)
class Path:
    """An SVG path in the plane."""

    d: str
    css: str
    name: str


@dataclass(frozen=True, slots=True)
class Label:
    """A word at a height in pixels."""

    y: float
    text: str
    css: str = ""


@dataclass(frozen=True, slots=True)
class Tick:
    """A place on an axis, from 0 to 100, and its number."""

    place: float
    text: str


@dataclass(frozen=True, slots=True)
class Drawing:
    """What the page holds of a chart."""

    chart: Chart
    height: int
    paths: list[Path]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    ends: list[Label]  # names of lines at their right ends
    legend: list[tuple[str, str]]  # css and name
    notes: list[str]
    description: str
    table: Table | None  # None for one of many
    level: float | None = None  # of the bound, from 0 to 100
    size: tuple[int, int] = field(default=PLANE)


def draw(chart: Chart, points: int = POINTS) -> Drawing:
    """Turn figures into places.

    Args:
        points: most of a line.
    """
    most = max(2, min(points, POINTS_IN_ALL // max(len(chart.lines), 1)))
    if chart.stacked:
        reduced = _on_top([envelope(series, most) for series in _aligned(chart.lines)])
    else:
        reduced = [envelope(line.series, most, line.error) for line in chart.lines]
    frame = _frame(chart, reduced)
    paths = [path for k, e in enumerate(reduced) for path in _paths(chart, k, reduced, e, frame)]
    ends = [] if len(chart.lines) == 1 else _ends(chart, reduced, frame)
    notes = [] if chart.small else _notes(chart, reduced, frame)
    xs = [x for x in ticks(max(frame.left, 0.0), frame.right, 5) if x == int(x)]
    ys = ticks(frame.low, frame.high, 3 if chart.small else 5)
    level = frame.up(chart.bound[1]) if chart.bound and frame.low <= chart.bound[1] <= frame.high else None
    return Drawing(
        chart,
        frame.height,
        paths,
        [Tick(100 * frame.across(x), word) for x, word in zip(xs, tick_words(xs), strict=True)],
        [Tick(100 * frame.up(y), word) for y, word in zip(ys, tick_words(ys), strict=True)],
        ends,
        [(css(line.kind), line.name) for line in chart.lines] if len(chart.lines) > 1 else [],
        notes,
        describe(chart),
        None if chart.small else table_of(chart),
        None if level is None else 100 * level,
    )


@dataclass(frozen=True, slots=True)
class _Frame:
    left: float
    right: float
    low: float
    high: float
    height: int

    def across(self, x: float) -> float:
        return (x - self.left) / (self.right - self.left)

    def up(self, y: float) -> float:
        """From 0 at the top to 1, and never further than an edge."""
        return min(max((self.high - y) / (self.high - self.low), 0.0), 1.0)

    def points(self, x: Floats, y: Floats) -> list[str]:
        """Places in the plane, as a path has them."""
        across = np.rint(PLANE[0] * (x - self.left) / (self.right - self.left)).astype(int)
        up = np.rint(PLANE[1] * np.clip((self.high - y) / (self.high - self.low), 0.0, 1.0)).astype(int)
        return [f"{a} {u}" for a, u in zip(across.tolist(), up.tolist(), strict=True)]


def _frame(chart: Chart, reduced: list[Envelope]) -> _Frame:
    height = SMALL if chart.small else HEIGHT
    xs = [e.x for e in reduced] + ([] if chart.until is None else [np.array([chart.until])])
    left, right = span_of(xs)
    if chart.stacked:
        return _Frame(left, right, 0.0, max(float(reduced[-1].high.max()), 1e-12), height)
    low, high = span_of([part for e in reduced for part in (e.low, e.high)])
    if chart.bound and math.isfinite(chart.bound[1]) and low - 3 * (high - low) <= chart.bound[1] <= 4 * high:
        low, high = min(low, chart.bound[1]), max(high, chart.bound[1])
    room = 0.06 * (high - low)
    low, high = (0.0 if 0 <= low < room else low - room), high + room
    if chart.bottom is not None and low < chart.bottom:
        low, high = chart.bottom, max(high, chart.bottom + room)
    return _Frame(left, right, low, high, height)


def _aligned(lines: Sequence[Line]) -> list[Series]:
    """Each at all steps of any; 0 where it has none."""
    xs, found = np.unique(np.concatenate([line.series.x for line in lines])), []
    for line in lines:
        y = np.zeros(len(xs))
        y[np.searchsorted(xs, line.series.x)] = np.nan_to_num(line.series.y)
        found.append(Series(xs, y))
    return found


def _on_top(reduced: list[Envelope]) -> list[Envelope]:
    """Each from the top of the one below it (`low`) to its own (`high`)."""
    below, found = np.zeros(len(reduced[0].x)), []
    for e in reduced:
        found.append(Envelope(e.x, e.mean, below, below + e.mean, e.reduced))
        below = below + e.mean
    return found


def _paths(chart: Chart, k: int, reduced: list[Envelope], e: Envelope, frame: _Frame) -> list[Path]:
    line, found = chart.lines[k], []
    look = css(line.kind)
    has_band = chart.stacked or e.reduced or line.error is not None
    for part in _stretches(e):
        if has_band:
            upper, lower = (frame.points(*_walk(chart, e.x[part], ys[part])) for ys in (e.high, e.low))
            around = "M" + "L".join([*upper, *lower[::-1]]) + "Z"
            found.append(Path(around, f"{'area' if chart.stacked else 'band'} {look}", line.name))
        if not chart.stacked:
            middle = frame.points(*_walk(chart, e.x[part], e.mean[part]))
            lone = "h1" if len(middle) == 1 else ""  # or nothing would be drawn
            found.append(Path("M" + "L".join(middle) + lone, f"line {look}", line.name))
    if not (chart.stacked or chart.steps) and len(e.x) <= DOTTED:
        known = np.isfinite(e.mean)
        dots = frame.points(e.x[known], e.mean[known])
        found.append(Path("".join(f"M{dot}h1" for dot in dots), f"dots {look}", line.name))
    return [path for path in found if path.d]


def _stretches(e: Envelope) -> list[slice]:
    """Parts without a gap."""
    known = np.flatnonzero(np.isfinite(e.mean))
    if not known.size:
        return []
    breaks = np.flatnonzero(np.diff(known) > 1)
    firsts, lasts = known[[0, *(breaks + 1)]], known[[*breaks, -1]]
    return [slice(int(first), int(last) + 1) for first, last in zip(firsts, lasts, strict=True)]


def _walk(chart: Chart, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """The points of a line, with a corner at each step of a staircase, which goes on to the end of the axis."""
    if not chart.steps:
        return x, y
    ends = np.append(x[1:], max(float(x[-1]), chart.until or 0.0))
    return np.stack([x, ends], axis=1).ravel(), np.repeat(y, 2)


def _ends(chart: Chart, reduced: list[Envelope], frame: _Frame) -> list[Label]:
    """Names beside the right ends, moved apart where they would stand on one another."""
    wanted = []
    for line, e in zip(chart.lines, reduced, strict=True):
        known = np.flatnonzero(np.isfinite(e.mean))
        if not known.size or (chart.stacked and e.mean[-1] <= 0):
            continue
        last = float((e.low[-1] + e.high[-1]) / 2) if chart.stacked else float(e.mean[known[-1]])
        wanted.append((frame.up(last) * frame.height, line))
    wanted.sort(key=lambda place: place[0])
    if len(wanted) * LABEL > frame.height + LABEL:
        return []  # the legend has them
    ys: list[float] = []
    for y, _ in wanted:
        ys.append(max(y, ys[-1] + LABEL) if ys else y)
    edge = float(frame.height)
    for k in reversed(range(len(ys))):
        ys[k] = min(ys[k], edge)
        edge = ys[k] - LABEL
    return [Label(y, _clipped(line.name), css(line.kind)) for y, (_, line) in zip(ys, wanted, strict=True)]


def _clipped(name: str, most: int = 13) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _notes(chart: Chart, reduced: list[Envelope], frame: _Frame) -> list[str]:
    notes = []
    if any(e.reduced for e in reduced):
        notes.append(
            "Each point is a mean over several steps"
            + ("." if chart.stacked else "; the band spans the least and the largest.")
        )
    elif any(line.error is not None for line in chart.lines):
        notes.append("Bands are one standard error to either side.")
    least = span_of([e.low for e in reduced])[0]
    if chart.bottom is not None and least < frame.low:
        notes.append(f"Values below {short(frame.low)} are drawn at the lower edge; the least is {short(least)}.")
    if chart.bound and not frame.low <= chart.bound[1] <= frame.high:
        notes.append(f"{chart.bound[0]} {short(chart.bound[1])} lies outside of the chart.")
    return notes
