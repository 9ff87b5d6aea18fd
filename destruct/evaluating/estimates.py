"""Figures with their standard errors, of n windows or n responses that are a sample of what a source holds.

Two models are compared by what they differ in on each window or response, so that what is hard for both cancels.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from destruct.curriculum.panels import PanelLosses
from destruct.curriculum.progress import measure_difficulty

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its standard error, in one unit; the error is inf where nothing can be said of it."""

    value: float
    se: float

    @property
    def z(self) -> float:
        """The figure in standard errors; NaN where the error is 0 or not known."""
        return self.value / self.se if 0 < self.se < math.inf else math.nan

    @property
    def is_beyond_error(self) -> bool:
        """Whether it is further from 0 than two standard errors."""
        return abs(self.value) > 2 * self.se


def per_unit(totals: Tensor, units: Tensor) -> Estimate:
    """What windows of unequal sizes have per unit: a ratio of two sums, as the validation loss of a run is.

        R       = sum_i t_i / sum_i u_i
        SE(R)^2 = n/(n-1) * sum_i (t_i - R u_i)^2 / (sum_i u_i)^2

    With t_i the nats of window i under one model less those under another, R is the difference of their losses and
    SE(R) its paired standard error.  The windows stand for all text of their kind, so there is no correction for how
    many of the held-out ones they are.

    Args:
        totals: (n,) float64, e.g. nats of each window.
        units: (n,) int64, e.g. predicted tokens of each, or their bytes.

    Returns:
        In units of totals per unit; NaN where no window has any unit.

    Source: W. G. Cochran, Sampling Techniques (1977), eq. 6.13.
    """
    whole = int(units.sum())
    if whole == 0:
        return Estimate(math.nan, math.inf)
    counted = units > 0  # in a window without one nothing was summed up
    sizes = units[counted].numpy(force=True)
    means = totals[counted].numpy(force=True) / sizes
    panel = PanelLosses(np.arange(sizes.size), means, sizes, population=None)
    return Estimate(totals.sum().item() / whole, measure_difficulty(panel, kappa=0.0).difficulty_se)


def perplexity(nats: Estimate) -> Estimate:
    """exp of a loss in nats per token; its error by the delta method, SE(exp L) = exp(L) SE(L)."""
    value = float(np.exp(np.float64(nats.value))) if nats.value < 709 else math.inf
    return Estimate(value, value * nats.se if value < math.inf else math.inf)


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """Mean of figures of independent samples, each of equal weight: SE^2 = sum of SE_k^2 / K^2."""
    count = len(estimates)
    return Estimate(sum(e.value for e in estimates) / count, math.hypot(*(e.se for e in estimates)) / count)


def unpaired(a: Estimate, b: Estimate) -> Estimate:
    """a - b of two samples that have nothing to do with each other: SE^2 = SE_a^2 + SE_b^2."""
    return Estimate(a.value - b.value, math.hypot(a.se, b.se))


@dataclass(frozen=True, slots=True, eq=False)
class Replicated:
    """A figure of n responses, and the same without each of them."""

    value: float
    without: Floats  # (n,) float64

    @property
    def estimate(self) -> Estimate:
        """With its standard error by the jackknife over responses.

            SE^2 = (n-1)/n * sum_i (f_(i) - mean f)^2,    f_(i) without response i

        Of a mean this is the usual error of a mean.  A bootstrap would draw a response twice, and distinct-n would take
        that for repetition.

        Source: B. Efron, The Jackknife, the Bootstrap and Other Resampling Plans (1982), chapter 3.
        """
        n = self.without.size
        if n < 2 or not np.isfinite(self.without).all():
            return Estimate(self.value, math.inf)
        spread = float(np.sum((self.without - np.mean(self.without)) ** 2))
        return Estimate(self.value, math.sqrt((n - 1) / n * spread))

    def less(self, other: "Replicated") -> Estimate:
        """The difference to a figure of responses to the same prompts, with its paired standard error."""
        return Replicated(self.value - other.value, self.without - other.without).estimate


def mean(values: Sequence[float]) -> Replicated:
    """The mean of a number per response, at least one."""
    each = np.array(values, dtype=np.float64)
    total, n = float(np.sum(each)), each.size
    without = (total - each) / (n - 1) if n > 1 else np.full(1, math.nan)
    return Replicated(total / n, without)


def distinct(responses: Sequence[Sequence[int]], n: int) -> Replicated:
    """distinct-n: of all n-grams of tokens in all responses, the share of different ones, in (0, 1]; NaN without any.

    It falls with the number of responses and with their length: compare where both are equal.

    Args:
        responses: tokens of each.
        n: tokens of an n-gram.

    Source: Li, Galley, Brockett, Gao and Dolan, arXiv:1510.03055, who divide by the number of tokens, so that for n > 1
        the most is below 1.
    """
    grams = [Counter(tuple(each[i : i + n]) for i in range(len(each) - n + 1)) for each in responses]
    every = sum(grams, Counter())
    total, different = every.total(), len(every)
    totals = np.array([total - own.total() for own in grams], dtype=np.float64)
    kept = np.array([different - sum(every[g] == count for g, count in own.items()) for own in grams], dtype=np.float64)
    without = np.divide(kept, totals, out=np.full(len(grams), math.nan), where=totals > 0)
    return Replicated(different / total if total else math.nan, without)
