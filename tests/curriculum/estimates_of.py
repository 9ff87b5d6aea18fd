"""A round's estimates for tests: the figures that a test is about, over plain ones for the rest."""

import math
from dataclasses import fields
from typing import Any

import numpy as np

from destruct.curriculum.estimates import Estimates, LossEstimates

PLAIN: dict[str, float] = {
    "difficulty": 3.0,
    "difficulty_se": 0.01,
    "variance": 0.1,
    "metric": 3.0,
    "progress": 0.0,
    "progress_se": 0.01,
    "gap_growth": 0.0,
    "gap_growth_se": 0.0,
    "tokens": 0.0,
    "share": 0.0,
    "epochs": 0.0,
    "exhausted": 0.0,
    "advantage": math.nan,
    "advantage_se": math.inf,
    "reward_variance": math.nan,
    "reward_variance_se": math.inf,
}
"""Of every source: nothing is learnt, nothing was drawn, no rollout was judged."""


def estimates_of(sources: int, round_index: int = 9, batches: int = 1, **figures: Any) -> Estimates:
    """Estimates of so many sources; a single number in `figures` is meant for every source."""
    figures = {name: np.array(value, float) for name, value in (PLAIN | figures).items()}
    columns = {name: np.full(sources, x) if x.ndim == 0 else x for name, x in figures.items()}
    return Estimates(round_index=round_index, batches=batches, **columns)


def completed(losses: LossEstimates, **figures: Any) -> Estimates:
    """What the panels said, with those figures of what was drawn."""
    said = {field.name: getattr(losses, field.name) for field in fields(LossEstimates)}
    return estimates_of(losses.difficulty.size, **(said | figures))


def permuted(estimates: Estimates, order: np.ndarray) -> Estimates:
    """The same figures of the sources in another order."""
    figures = {field.name: getattr(estimates, field.name) for field in fields(Estimates)}
    return Estimates(**{name: x[order] if isinstance(x, np.ndarray) else x for name, x in figures.items()})
