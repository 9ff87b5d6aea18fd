"""The figures behind a chart: as a table, and in words for those who do not see it."""

import math
from dataclasses import dataclass

import numpy as np

from destruct.reporting.charts import Chart, Line
from destruct.reporting.log import Floats, Series
from destruct.reporting.scales import full, short

ROWS, CELLS = 60, 1500
"""Of a chart's table."""


@dataclass(frozen=True, slots=True)
class Table:
    """The figures behind a chart."""

    note: str
    heads: list[str]
    rows: list[list[str]]


def describe(chart: Chart) -> str:
    """The chart in words, for those who do not see it."""
    parts = [f"{chart.title}, {chart.unit}, over the {chart.x}."]
    for line in chart.lines[:40]:
        known = np.flatnonzero(np.isfinite(line.series.y))
        if known.size:
            y = line.series.y[known]
            said = f"{line.name}: from {short(y[0])} to {short(y[-1])}, between {short(y.min())} and {short(y.max())}."
            parts.append(said)
    if chart.bound:
        parts.append(f"{chart.bound[0]}: {short(chart.bound[1])}.")
    return " ".join(parts)


def table_of(chart: Chart) -> Table:
    """All figures where they are few enough, else means over stretches of the steps."""
    xs = np.unique(np.concatenate([line.series.x for line in chart.lines]))
    names = [line.name for line in chart.lines]
    most = max(2, min(ROWS, CELLS // len(names)))
    if len(xs) <= most:
        columns = [_exact(line, xs) for line in chart.lines]
        rows = [[full(x), *cells] for x, cells in zip(xs.tolist(), zip(*columns, strict=True), strict=True)]
        return Table("", [chart.x, *names], rows)
    edges = xs[np.linspace(0, len(xs), most, endpoint=False).astype(int)]
    lasts = [*xs[np.searchsorted(xs, edges[1:]) - 1], xs[-1]]
    columns = [_summed_up(line.series, edges) for line in chart.lines]
    spans = [full(a) if a == b else f"{full(a)} to {full(b)}" for a, b in zip(edges.tolist(), lasts, strict=True)]
    rows = [[span, *cells] for span, cells in zip(spans, zip(*columns, strict=True), strict=True)]
    return Table("Means over the steps of a row, and in brackets the least and the largest.", [chart.x, *names], rows)


def _exact(line: Line, xs: Floats) -> list[str]:
    cells = ["–"] * len(xs)
    for k, place in enumerate(np.searchsorted(xs, line.series.x).tolist()):
        error = math.nan if line.error is None else float(line.error[k])
        words = full(float(line.series.y[k]))
        cells[place] = f"{words} ± {full(error)}" if math.isfinite(error) else words
    return cells


def _summed_up(series: Series, edges: Floats) -> list[str]:
    places, cells = np.searchsorted(edges, series.x, side="right") - 1, []
    for k in range(len(edges)):
        y = series.y[(places == k) & np.isfinite(series.y)]
        cells.append(f"{full(y.mean())} ({short(y.min())} … {short(y.max())})" if y.size else "–")
    return cells
