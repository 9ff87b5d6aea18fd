"""Figures as a chart and a table hold them: fewer of them, ticks, and numbers in words."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from destruct.reporting.log import Floats, Series

FURTHEST = 1e300
"""What an axis reaches to: the distance between larger figures may be no number."""

STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, slots=True, eq=False)
class Envelope:
    """A series in few enough points to draw: of each stretch of it the mean, the least and the largest."""

    x: Floats
    mean: Floats
    low: Floats
    high: Floats
    reduced: bool  # whether a point stands for several


def envelope(series: Series, most: int, error: Floats | None = None) -> Envelope:
    """Reduce a series to at most so many stretches of equal length.

    Args:
        error: half the width of a band around it, which the least and the largest take in; where it is not finite the
            band is as wide as the line.
    """
    spread = np.zeros_like(series.y) if error is None else np.where(np.isfinite(error), error, 0.0)
    low, high = series.y - spread, series.y + spread
    count = len(series)
    if count <= most:
        return Envelope(series.x, series.y, low, high, reduced=False)
    starts = np.linspace(0, count, most, endpoint=False).astype(int)
    sizes = np.diff([*starts, count])
    known = np.isfinite(series.y)
    told = np.add.reduceat(known.astype(np.float64), starts)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        mean = np.add.reduceat(np.where(known, series.y, 0.0), starts) / np.where(told > 0, told, np.nan)
    least = np.minimum.reduceat(np.where(known, low, np.inf), starts)
    largest = np.maximum.reduceat(np.where(known, high, -np.inf), starts)
    x = np.add.reduceat(series.x, starts) / sizes
    unknown = told == 0
    return Envelope(x, mean, np.where(unknown, np.nan, least), np.where(unknown, np.nan, largest), reduced=True)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers within a range, some `about` of them."""
    span = high - low
    if not (math.isfinite(span) and span > 0):
        return [low] if math.isfinite(low) else []
    rough = span / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in STEPS if power * factor >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def span_of(values: Sequence[Floats]) -> tuple[float, float]:
    """Least and largest of all that is finite, not equal; (0, 1) where nothing is."""
    finite = [part[np.isfinite(part)] for part in values]
    known = np.concatenate(finite) if finite else np.array([])
    if not known.size:
        return 0.0, 1.0
    low, high = max(float(known.min()), -FURTHEST), min(float(known.max()), FURTHEST)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        around = abs(low) * 0.1 or 1.0
        return low - around, high + around
    return low, high


def short(value: float, digits: int = 4) -> str:
    """A number as a person reads it; a dash for one that is not finite."""
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    if abs(value) >= 1000 and abs(value) < 1e15:
        return f"{value:,.0f}" if abs(value) >= 10**digits or value == int(value) else f"{value:,.1f}"
    return f"{value:.{digits}g}"


def even(value: float) -> str:
    """A number in three decimals, so that a column of them stands in line; as `short` where those would not do."""
    is_fit = value == 0 or 0.01 <= abs(value) < 1e4
    return f"{value:.3f}" if is_fit else short(value)


def full(value: float) -> str:
    """A number of a table, to six figures; a dash for one that is not finite."""
    return f"{value:.6g}" if math.isfinite(value) else "–"


def tick_words(values: list[float]) -> list[str]:
    """Ticks in as many digits as tell them apart."""
    step = abs(values[1] - values[0]) if len(values) > 1 else abs(values[0]) if values else 0.0
    largest = max(map(abs, values), default=0.0)
    if largest >= 1e6 or (0 < largest < 1e-3):
        return [f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e") if value else "0" for value in values]
    digits = max(0, -math.floor(math.log10(step) + 1e-9)) if step else 0
    if step and abs(step / 10.0**-digits - round(step / 10.0**-digits)) > 1e-6:  # 2.5 and its like
        digits += 1
    return [f"{value if value else 0.0:,.{digits}f}" for value in values]


def duration(seconds: float) -> str:
    """Seconds in words."""
    if not math.isfinite(seconds):
        return "–"
    if seconds < 59.5:
        return f"{seconds:.3g} s"
    seconds = round(seconds)
    minutes, hours, days = seconds / 60, seconds / 3600, seconds / 86400
    if minutes < 60:
        return f"{int(minutes)} min {int(seconds % 60)} s"
    return f"{int(hours)} h {int(minutes % 60)} min" if days < 2 else f"{int(days)} d {int(hours % 24)} h"
