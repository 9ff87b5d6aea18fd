"""A curriculum in closed loop without a model: learning curves that answer to what the weights draw.

Legend: S sources, n tokens drawn of a source. One unit of tokens is a two-hundredth of a run, so that sources of equal
weight come to 200/S units each, however many rounds the run is cut into. Losses are nats per token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from destruct.curriculum.estimates import Estimates, Floats, LossEstimates
from destruct.curriculum.panels import PanelLosses, next_start, panel_items
from destruct.curriculum.progress import ProgressEstimator, window_length
from destruct.curriculum.strategies import Strategy
from tests.curriculum.rounds import estimates_of

RUN = 200.0  # units of tokens in a run
POPULATION, PANEL = 400, 48  # held-out items of a source, and how many of them a round scores
REPEATED_WORTH = 15.4  # epochs in which a repeated token's worth falls to 1/e, arXiv:2305.16264
ROUNDS = 64


@dataclass(frozen=True)
class Source:
    """A learning curve: L = floor + height * (1 + max(n - plateau, 0) / scale)^-power."""

    floor: float  # nats/token that nothing can learn
    height: float  # nats/token between the start and the floor
    scale: float = 1.0  # units
    power: float = 0.5
    plateau: float = 0.0  # units after which the loss begins to fall
    size: float = np.inf  # units in the source; what is drawn beyond is repeated
    overfit: float = 0.0  # nats/token that an epoch after the fourth adds on held-out text

    def held_out(self, n: float) -> float:
        """Loss after n units: a repeated one is worth less, as in arXiv:2305.16264."""
        epochs = n / self.size
        fresh = min(n, self.size)
        if epochs > 1:
            fresh += self.size * REPEATED_WORTH * (1 - np.exp(-(epochs - 1) / REPEATED_WORTH))
        return self._curve(fresh) + self.overfit * max(epochs - 4, 0)

    def on_training(self, n: float) -> float:
        """Loss on the text that is trained on, which every epoch learns better by heart."""
        return self._curve(n)

    def _curve(self, n: float) -> float:
        return self.floor + self.height * (1 + max(n - self.plateau, 0) / self.scale) ** -self.power


WASTE = (
    Source(0.06, 4.10, scale=0.5, power=1.5),  # easy
    Source(1.2, 2.96),  # medium
    Source(1.6, 2.56, power=0.35),  # medium
    Source(1.0, 1.8, scale=3, power=0.8, plateau=4),  # hard: nothing is learnt before 4 units
    Source(4.16, 0.0),  # noise
    Source(1.2, 2.96),  # duplicate of a medium one
    Source(1.8, 2.36, power=0.4, size=3, overfit=0.02),  # small
)
NOISE = 4
CLEAN = (Source(1.2, 2.96),) * 4


class Course(NamedTuple):
    """What a run of R rounds did."""

    losses: Floats  # (R + 1, S) true held-out losses, before the first round's tokens and after each round's
    weights: Floats  # (R, S) in force during each round

    def average(self) -> Floats:
        """(R + 1,) mean over the sources that can be learnt."""
        return self.losses[:, np.ptp(self.losses, axis=0) > 0].mean(axis=1)

    def churn(self) -> float:
        """Sum of |dw| over the second half."""
        return float(np.abs(np.diff(self.weights[len(self.weights) // 2 :], axis=0)).sum())


def rounds_to(course: Course, level: float) -> float:
    """Rounds until the average loss is down to `level`, interpolated; inf if it never is."""
    average = course.average()
    below = np.flatnonzero(average <= level)
    if below.size == 0:
        return np.inf
    if below[0] == 0:
        return 0.0
    after = int(below[0])
    return after - 1 + (average[after - 1] - level) / (average[after - 1] - average[after])


class Measured:
    """Panels around a true loss, with effects of the item (.4 nats/token), of the round (.01), and of both (.03).

    Args:
        noise: the last two as multiples of these figures.
    """

    def __init__(self, sources: int, rng: Generator, noise: float):
        self._rng, self._noise = rng, noise
        self._items = rng.normal(0, 0.4, (sources, POPULATION))
        self._sizes = np.full(PANEL, 64)

    def panels(self, losses: Floats, start: int) -> list[PanelLosses]:
        """One of each source, whose true losses are (S,)."""
        items = panel_items(start, PANEL, POPULATION)
        of_round = self._rng.normal(0, 0.01, (losses.size, 1))
        of_both = self._rng.normal(0, 0.03, (losses.size, PANEL))
        scored = losses[:, None] + self._items[:, items] + self._noise * (of_round + of_both)
        return [PanelLosses(items, row, self._sizes, POPULATION) for row in scored]


def simulate(strategy: Strategy, sources: Sequence[Source], seed: int, noise: float = 1.0) -> Course:
    """Let the strategy draw from the sources, from estimates of noisy panels."""
    rng, size = np.random.default_rng(seed), len(sources)
    held_out, training = Measured(size, rng, noise), Measured(size, rng, noise)
    progress, on_training = ProgressEstimator(size, kappa=0), ProgressEstimator(size, kappa=0)
    drawn, spans, start = np.zeros(size), [], 0
    n, losses, weights = np.zeros(size), [held_out_losses(sources, np.zeros(size))], []
    for _ in range(ROUNDS):
        epochs = n / [source.size for source in sources]
        panels = held_out.panels(losses[-1], start)
        by_heart = np.array([source.on_training(x) for source, x in zip(sources, n, strict=True)])
        of_training = training.panels(by_heart, start)
        repeated = [panel if e >= 1 else None for panel, e in zip(of_training, epochs, strict=True)]
        start = next_start(start, PANEL)
        now, then = progress.observe(panels), on_training.observe(repeated)
        spans = [*spans, drawn][1 - window_length(progress.rounds) :]
        strategy.observe(_estimates(now, then, drawn, np.sum(spans, axis=0), epochs))
        weights.append(strategy.weights())
        drawn = weights[-1] * RUN / ROUNDS
        n = n + drawn
        losses.append(held_out_losses(sources, n))
    return Course(np.array(losses), np.array(weights))


def uniform(sources: Sequence[Source]) -> Course:
    """Equal weights, which need no estimates and know no chance."""
    equal = np.full(len(sources), 1 / len(sources))
    losses = [held_out_losses(sources, r * equal * RUN / ROUNDS) for r in range(ROUNDS + 1)]
    return Course(np.array(losses), np.tile(equal, (ROUNDS, 1)))


def held_out_losses(sources: Sequence[Source], n: Floats) -> Floats:
    """(S,) true losses after n (S,) units."""
    return np.array([source.held_out(x) for source, x in zip(sources, n, strict=True)])


def _estimates(
    now: LossEstimates, on_training: LossEstimates, drawn: Floats, spanned: Floats, epochs: Floats
) -> Estimates:
    """What a round makes of its panels; the gap is that of a source which has been gone through once."""
    known = np.isfinite(on_training.progress_se) & np.isfinite(now.progress_se)
    growth = np.where(known, on_training.progress - now.progress, np.nan)
    error = np.where(known, np.hypot(on_training.progress_se, now.progress_se), np.inf)
    names = ("difficulty", "difficulty_se", "variance", "metric", "progress", "progress_se")
    return estimates_of(
        now.round_index,
        **{name: getattr(now, name) for name in names},
        gap_growth=np.where(epochs >= 1, growth, 0.0),
        gap_growth_se=np.where(epochs >= 1, error, 0.0),
        tokens=drawn,
        share=spanned / max(np.sum(spanned), 1e-9),
        epochs=epochs,
    )
