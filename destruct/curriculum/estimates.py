"""What a round knows of every source, each figure with its standard error: all that strategies read.

Legend: S sources, w share of drawn tokens. Losses are nats per token, progress is nats per token and round.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Fewest rounds from which a slope and its residual error can be had.
MIN_ROUNDS = 3


@dataclass(frozen=True, slots=True, eq=False)
class LossEstimates:
    """What the panels say of the S sources. `progress` is 0 wherever `progress_se` is inf: nothing is known.

    A source without a panel, or whose losses are not finite, has NaN difficulty, variance and metric. nats/token are
    bits/byte, or shares of the first round's metric, where `curriculum.unit` asks for that. Raises ValueError on
    unequal shapes.
    """

    round_index: int  # 0 for the first round
    difficulty: Floats  # (S,) nats/token            D, token-weighted mean of this round's panel
    difficulty_se: Floats  # (S,) nats/token            SE of D, with 1 - n/N; inf for a panel of one item
    variance: Floats  # (S,) (nats/token)^2        V between sequences, with n-1; 0 for a panel of one item
    metric: Floats  # (S,) nats/token            M = D + kappa * sqrt(V)
    progress: Floats  # (S,) nats/token per round  LP: how much M falls per round, over the window
    progress_se: Floats  # (S,) nats/token per round  larger of the residual and the paired standard error

    def __post_init__(self) -> None:
        want = (self.difficulty.size,)
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray) and value.shape != want:
                raise ValueError(f"{type(self).__name__}.{field.name} is {value.shape}; difficulty has {want}")


@dataclass(frozen=True, slots=True, eq=False)
class Estimates(LossEstimates):
    """All that a strategy may read of a round, and what the log keeps of it, field by field."""

    batches: int  # drawn since the round before
    compressed: Floats  # (S,) nats/token            what LZMA takes for held-out windows; NaN: not asked for
    # LP on training windows less LP held out; 0 where no window was seen twice, NaN where it is not known yet.
    gap_growth: Floats  # (S,) nats/token per round
    gap_growth_se: Floats  # (S,) nats/token per round  its standard error
    tokens: Floats  # (S,) tokens                drawn since the round before
    share: Floats  # (S,) share                 of the tokens drawn over the rounds that LP spans; 0 for all: none drawn
    epochs: Floats  # (S,) epochs                gone through so far
    exhausted: Floats  # (S,) 0 or 1                1: nothing more can be drawn of it
    advantage: Floats  # (S,) whitened units        mean |A| of the rollouts since the round before; NaN without any
    advantage_se: Floats  # (S,) whitened units        its standard error; inf below two rollouts
    reward_variance: Floats  # (S,) reward units squared  variance of their scores, with n-1; NaN below two rollouts
    reward_variance_se: Floats  # (S,) reward units squared  its standard error; inf below four rollouts


def as_columns(estimates: Estimates) -> dict[str, Any]:
    """Field -> value, as the class lists them."""
    return {field.name: getattr(estimates, field.name) for field in fields(estimates)}


def relative_to(estimates: Estimates, scale: Floats) -> Estimates:
    """The same with losses as shares of `scale` (S,)."""
    losses = ("difficulty", "difficulty_se", "metric", "progress", "progress_se", "gap_growth", "gap_growth_se")
    divisor = np.where(np.isnan(scale), 1.0, scale)
    shares = {name: getattr(estimates, name) / divisor for name in (*losses, "compressed")}
    return replace(estimates, **shares, variance=estimates.variance / divisor**2)
