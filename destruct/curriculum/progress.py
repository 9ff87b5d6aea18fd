"""How hard every source is and how fast the model learns it, each figure with its standard error.

Legend: S sources, n items of a panel, W rounds of the window. An item is one held-out sequence, named by its index in
the source's held-out set. Losses are nats per token, progress is nats per token and round.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from destruct.curriculum.estimates import MIN_ROUNDS, Floats, LossEstimates
from destruct.curriculum.panels import PanelLosses

Integers = NDArray[np.int64]

# The window is a quarter of all rounds: growing with time, it keeps the signal-to-noise ratio of a power law constant.
WINDOW_DIVISOR = 4


class Difficulty(NamedTuple):
    """One source in one round; the fields of `Estimates` of the same names."""

    difficulty: float
    difficulty_se: float
    variance: float
    metric: float


class Progress(NamedTuple):
    """One source over the window, nats per token and round: the slope's fall and its two standard errors."""

    progress: float
    residual_se: float
    paired_se: float


UNKNOWN = Progress(0.0, math.inf, math.inf)


def window_length(rounds: int) -> int:
    """W, the last quarter of the rounds seen so far, rounded up, and never fewer than three."""
    return max(MIN_ROUNDS, -(-rounds // WINDOW_DIVISOR))


def slope_weights(length: int) -> Floats:
    """Weights c (W,) of the least-squares line: slope = sum_t c_t * y_t, and sum c_t^2 = 1 / sum (t - mean t)^2."""
    centred = np.arange(length) - (length - 1) / 2
    return centred / np.sum(centred**2)


def _metric_and_influence(losses: Floats, sizes: Integers, kappa: float) -> tuple[float, Floats]:
    """M of these items, and each item's share in its error (the delta method); the shares add up to 0.

    D is a ratio of sums, so item i moves it by omega_i * (l_i - D), omega = sizes / sum of sizes; sqrt(V) it moves by
    ((l_i - mean)^2 * n/(n-1) - V) / (2 n sqrt(V)). The variance of M is n/(n-1) times the sum of the squared shares.
    """
    n = losses.size
    omega = sizes / np.sum(sizes)
    metric = float(np.sum(omega * losses))
    influence = omega * (losses - metric)
    if kappa == 0 or n < 2:
        return metric, influence
    squares = (losses - np.mean(losses)) ** 2
    variance = np.sum(squares) / (n - 1)
    sd = math.sqrt(variance)
    if sd > 0:  # equal losses: sqrt(V) has no derivative there, and no item is known to move it
        influence = influence + kappa * (squares * (n / (n - 1)) - variance) / (2 * n * sd)
    return metric + kappa * sd, influence


def measure_difficulty(panel: PanelLosses, kappa: float) -> Difficulty:
    """Difficulty of one source on one panel.

        D = sum_i T_i l_i / sum_i T_i,    V = sum_i (l_i - mean l)^2 / (n - 1),    M = D + kappa * sqrt(V)
        SE(D)^2 = n/(n-1) * sum_i omega_i^2 (l_i - D)^2 * (1 - n/N),    omega_i = T_i / sum T

    With sequences of one length SE(D) is sqrt(V/n) * sqrt(1 - n/N).

    Args:
        panel: n sequences of the source; N is its `population`.
        kappa: weight of the spread in the metric, at least 0.

    Source: W. G. Cochran, Sampling Techniques (1977), eq. 2.20 (finite population) and 6.13 (ratio estimate).
    """
    n = panel.items.size
    if not np.isfinite(panel.losses).all():
        return Difficulty(math.nan, math.inf, math.nan, math.nan)
    difficulty, influence = _metric_and_influence(panel.losses, panel.sizes, kappa=0.0)
    if n == 1:
        return Difficulty(difficulty, math.inf, 0.0, difficulty)
    variance = float(np.var(panel.losses, ddof=1))
    unseen = 1.0 if panel.population is None else 1.0 - n / panel.population
    error = math.sqrt(n / (n - 1) * float(np.sum(influence**2)) * unseen)
    return Difficulty(difficulty, error, variance, difficulty + kappa * math.sqrt(variance))


def measure_progress(panels: Sequence[PanelLosses], kappa: float) -> Progress:
    """Learning progress of one source over the panels of its window, by differences over common items only.

        M~_t = M~_{t-1} + Delta_t,    Delta_t = M_t - M_{t-1} on the items of both rounds, omega from their sizes
        LP   = -slope(M~) = sum_s a_s * Delta_s,    a_s = -sum_{t >= s} c_t,    c of `slope_weights`
        residual SE^2 = sum_t e_t^2 / (W - 2) * sum_t c_t^2,    e the residuals of the fit
        paired SE^2   = n/(n-1) * sum_i y_i^2,    y_i = sum_s a_s * omega_is * (d_is - Delta_s)

    A change of panel never looks like progress, and an item that stays for many rounds counts as one draw: y_i is all
    that it adds to LP, with its pull on sqrt(V) where kappa > 0. n counts the items that occur in the window.

    Args:
        panels: W consecutive rounds, oldest first.
        kappa: weight of the spread in the metric, at least 0.

    Returns:
        `UNKNOWN` (0, inf, inf) for fewer than three rounds, for two neighbouring rounds with fewer than two items in
        common, and where a loss is not finite.
    """
    if len(panels) < MIN_ROUNDS or not all(np.isfinite(panel.losses).all() for panel in panels):
        return UNKNOWN
    slope = slope_weights(len(panels))
    effect = -np.cumsum(slope[::-1])[::-1][1:]
    chain, items, pulls = [0.0], [], []
    for a, (older, newer) in zip(effect, pairwise(panels), strict=True):
        common, at_old, at_new = np.intersect1d(older.items, newer.items, assume_unique=True, return_indices=True)
        if common.size < 2:
            return UNKNOWN
        sizes = newer.sizes[at_new]
        before, influence_before = _metric_and_influence(older.losses[at_old], sizes, kappa)
        after, influence_after = _metric_and_influence(newer.losses[at_new], sizes, kappa)
        chain.append(chain[-1] + (after - before))
        items.append(common)
        pulls.append(a * (influence_after - influence_before))
    series = np.array(chain)
    progress = -float(np.sum(slope * series))
    residuals = series - np.mean(series) + progress * (np.arange(series.size) - (series.size - 1) / 2)
    residual_variance = np.sum(residuals**2) / (series.size - 2) * np.sum(slope**2)
    units, unit_of_pull = np.unique(np.concatenate(items), return_inverse=True)
    totals = np.bincount(unit_of_pull, weights=np.concatenate(pulls))
    paired_variance = units.size / (units.size - 1) * np.sum(totals**2)
    return Progress(progress, math.sqrt(residual_variance), math.sqrt(paired_variance))


class ProgressEstimator:
    """Turns the panels of each round into `LossEstimates`; remembers the panels of the window and little else."""

    def __init__(self, num_sources: int, kappa: float):
        """Args:
        num_sources: S.
        kappa: weight of the spread in the metric, at least 0.
        """
        self.num_sources = num_sources
        self.kappa = kappa
        self.rounds = 0
        self.first_metric = np.full(num_sources, np.nan)  # of each source's first round; NaN before
        self._window: list[tuple[PanelLosses | None, ...]] = []

    def observe(self, panels: Sequence[PanelLosses | None]) -> LossEstimates:
        """Takes in one round and estimates with all rounds of the window.

        Args:
            panels: one per source, in the order of the sources; None for one that was not scored, which is not known
                until it has been so for three rounds in a row.

        Raises:
            ValueError: another number of panels.
        """
        if len(panels) != self.num_sources:
            raise ValueError(f"{len(panels)} panels for {self.num_sources} sources")
        self.rounds += 1
        self._window.append(tuple(panels))
        # The window's start never goes back, so what falls out of it is never needed again. What stays costs 3*n*S
        # numbers (item, loss, size) for each round of the last quarter: 12 kB a round for n = 100 and S = 5.
        del self._window[: -window_length(self.rounds)]
        now = [_NOT_MEASURED if panel is None else measure_difficulty(panel, self.kappa) for panel in panels]
        learnt = [measure_progress(_newest(history), self.kappa) for history in zip(*self._window, strict=True)]
        metric = np.array([source.metric for source in now])
        self.first_metric = np.where(np.isnan(self.first_metric), metric, self.first_metric)
        return LossEstimates(
            round_index=self.rounds - 1,
            difficulty=np.array([source.difficulty for source in now]),
            difficulty_se=np.array([source.difficulty_se for source in now]),
            variance=np.array([source.variance for source in now]),
            metric=metric,
            progress=np.array([source.progress for source in learnt]),
            # Optimizer noise is common to the whole panel, so the paired error alone would understate it.
            progress_se=np.array([max(source.residual_se, source.paired_se) for source in learnt]),
        )

    def state_dict(self) -> dict[str, Any]:
        """The rounds seen and the window, as plain numbers and lists: unchanged by a pass through JSON."""
        return {
            "rounds": self.rounds,
            "window": [[panel and _panel_to_plain(panel) for panel in panels] for panels in self._window],
            "first": [None if math.isnan(x) else x for x in self.first_metric.tolist()],
        }

    def load_state_dict(self, state: dict[str, Any], places: Sequence[int | None]) -> None:
        """Goes on where `state_dict` was taken.

        Args:
            places: of each source of this run, where it stands in the state; None for a new one.
        """
        self.rounds = int(state["rounds"])
        self._window = [
            tuple(_panel_from_plain(panels[place]) if place is not None else None for place in places)
            for panels in state["window"]
        ]
        first = [state["first"][place] if place is not None else None for place in places]
        self.first_metric = np.array([math.nan if x is None else x for x in first])


_NOT_MEASURED = Difficulty(math.nan, math.inf, math.nan, math.nan)


def _newest(history: Sequence[PanelLosses | None]) -> list[PanelLosses]:
    """The panels since the source was last not scored."""
    newest: list[PanelLosses] = []
    for panel in history:
        newest = [] if panel is None else [*newest, panel]
    return newest


def _panel_to_plain(panel: PanelLosses) -> dict[str, Any]:
    arrays = {name: getattr(panel, name).tolist() for name in ("items", "losses", "sizes")}
    return {**arrays, "population": panel.population}


def _panel_from_plain(plain: dict[str, Any] | None) -> PanelLosses | None:
    if plain is None:
        return None
    return PanelLosses(
        items=np.array(plain["items"], dtype=np.int64),
        losses=np.array(plain["losses"], dtype=np.float64),
        sizes=np.array(plain["sizes"], dtype=np.int64),
        population=plain["population"],
    )
