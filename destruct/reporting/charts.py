"""What a chart shows, before it is drawn."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from destruct.reporting.log import Floats, Series

COLOURS, DASHES, SHADES = 8, 4, 4
"""Kinds of lines in `style.css`: line number i has the colour i and the dashes i + i / COLOURS, both anew from the
first after the last, so that no two of the first 32 are drawn alike; an area has the shade i / COLOURS instead."""


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """One figure of a chart."""

    name: str
    series: Series
    error: Floats | None = None  # (N,) half the width of its band
    kind: int = 0  # of its colour and dashes


@dataclass(frozen=True, slots=True, eq=False)
class Chart:
    """What a chart shows."""

    title: str
    unit: str
    meaning: str
    lines: Sequence[Line]
    x: str = "update"
    bound: tuple[str, float] | None = None  # a level that is drawn across, and what it is
    stacked: bool = False  # shares on top of one another; a line that is not there at a step counts as 0
    steps: bool = False  # a value holds until the next
    until: float | None = None  # where the axis ends, where that is later than the last value
    bottom: float | None = None  # nothing below is drawn
    small: bool = False

    @property
    def drawn(self) -> bool:
        """Whether anything can be drawn."""
        return any(np.isfinite(line.series.y).any() for line in self.lines)


def css(kind: int) -> str:
    """Classes of a line's colour and dashes."""
    return f"c{kind % COLOURS} d{(kind + kind // COLOURS) % DASHES} o{kind // COLOURS % SHADES}"
