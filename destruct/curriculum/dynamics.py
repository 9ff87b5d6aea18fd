"""From a signal to the next weights: a damped mass on a spring, projected; and when that is stable.

Legend: S sources; w weights, w0 prior, shares of drawn tokens that sum to 1; pure functions of arrays (S,).
"""

import math
from collections.abc import Callable

import numpy as np

from destruct.curriculum.estimates import Floats
from destruct.errors import DestructError


class NotProjectable(ValueError):
    """No point of the simplex belongs to these weights: they are not finite, or clipping leaves none of them."""


def project_to_floor(w: Floats, floor: float) -> Floats:
    """Nearest point to w, in the Euclidean sense, of {p: p >= floor, sum p = 1}.

        p_i = floor + max(w_i - floor - theta, 0),    theta such that sum p = 1

    Args:
        w: (S,) any finite numbers.
        floor: least weight of a source, in [0, 1/S].

    Returns:
        (S,) float64, at the floor or above it exactly, summing to 1 up to rounding.

    Raises:
        NotProjectable: a weight is not finite.
        DestructError: S floors are more than 1.

    Source: the sort algorithm of Held, Wolfe and Crowder (1974), as in arXiv:1309.1541.
    """
    mass = 1.0 - w.size * floor
    # 1/S taken S times can be one rounding above 1.
    if mass < -1e-12 or floor < 0:
        raise DestructError(
            f"a floor of {floor:g} for each of {w.size} sources does not fit: weights are at least 0 and sum to 1",
            remedy=f"give each source a floor between 0 and {1 / w.size:.4g}",
        )
    if not np.isfinite(w).all():
        raise NotProjectable(f"weights {w} are not finite")
    mass = max(mass, 0.0)
    # Adding a constant to w moves nothing, so the largest is put at 0, where sums keep their digits; and whatever lies
    # `mass` or more below the largest ends on the floor, so it may be cut there, where nothing overflows.
    with np.errstate(over="ignore"):
        above = np.maximum(w - np.max(w), -mass)
    descending = np.sort(above)[::-1]
    thresholds = (np.cumsum(descending) - mass) / np.arange(1, w.size + 1)
    theta = thresholds[max(int(np.sum(descending > thresholds)) - 1, 0)]
    return floor + np.maximum(above - theta, 0.0)


def clip_renorm(w: Floats) -> Floats:
    """Clips at 0 and divides by the sum: the specification's rule, which keeps no floor.

        p = max(w, 0) / sum max(w, 0)

    Args:
        w: (S,) any finite numbers, one of them positive.

    Raises:
        NotProjectable: no weight is positive or the sum is not finite, where the bare rule would give NaN.
    """
    clipped = np.clip(w, a_min=0, a_max=None)
    total = np.sum(clipped)
    if not (np.isfinite(total) and total > 0):
        raise NotProjectable(f"nothing is left of weights {w} after clipping at 0, or their sum is not finite")
    return clipped / total


def momentum_step(
    weights: Floats, velocity: Floats, gradient: Floats, prior: Floats, eta: float, mu: float, lam: float
) -> tuple[Floats, Floats]:
    """One step of the weights as a damped mass on a spring towards the prior.

        v <- mu * v + (1 - mu) * eta * (g - lam * (w - w0)),    w <- w + v

    The factor (1 - mu) makes the gain independent of mu. With mu = lam = 0 the step is w + eta * g, bit for bit.

    Args:
        weights, velocity, gradient, prior: (S,) w, v, g and w0.
        eta: step per round. mu: momentum, in [0, 1). lam: pull towards the prior, at least 0.

    Returns:
        velocity, weights: (S,) each, new arrays; the weights not yet projected.
    """
    velocity = mu * velocity + (1 - mu) * eta * (gradient - lam * (weights - prior))
    return velocity, weights + velocity


def check_stability(eta: float, mu: float, lam: float) -> None:
    """Refuses dials with which the weights swing ever wider even under a constant signal.

        stable iff  eta * lam * (1 - mu) < 2 * (1 + mu)

    This is the Jury criterion for (z - 1)(z - mu) + eta*lam*(1-mu) z, the characteristic polynomial of `momentum_step`.
    It asks less than stability with a signal that answers the weights, which needs lam > 0 as well.

    Raises:
        DestructError: the dials are outside, with an eta that is inside by half.
    """
    gain, bound = eta * lam * (1 - mu), 2 * (1 + mu)
    if gain >= bound:
        raise DestructError(
            f"the sampling weights would oscillate without end: eta={eta:g}, lam={lam:g}, mu={mu:g} give "
            f"eta*lam*(1-mu) = {gain:.4g}, which must stay below 2*(1+mu) = {bound:.4g}",
            remedy=f"set curriculum.eta: {bound / (2 * lam * (1 - mu)):.2g}, or lower curriculum.lam",
        )


def largest_response(mu: float, lam: float) -> float:
    """How strongly a signal may answer the weights before the closed loop swings ever wider: c < lam * (1 - mu).

    About rest, with x = w - w* and a signal that loses c x per round (y <- y - c x, diminishing returns), the step has
    the characteristic polynomial (z-1)^2 (z-mu) + a z (z-1) + b z, a = (1-mu) eta lam, b = (1-mu) eta c. By the Jury
    criterion it is stable iff

        a (1-mu) > b,    a (1-mu) - b < 2 (1 - mu^2),    a < 2 (1+mu) + b/2,

    of which the first is this bound, and the others hold for every c > 0 where `check_stability` passes. It is 0, and
    nothing is stable, for lam = 0.

    Returns:
        the bound on c, share of the signal lost per round and per unit of share; eta cancels.
    """
    return lam * (1 - mu)


def estimate_response(weights: Floats, signals: Floats) -> float:
    """c of `largest_response` from what the signals did while the weights were in force.

        c = -sum_tk (dy_tk - mean_t dy_k) (z_tk - mean_t z_k) / sum_tk (w_tk - mean_t w_k) (z_tk - mean_t z_k)

    with z_t = w_{t-1} as an instrument: w_t has followed the error of the signal before it, which dy_t contains too, so
    that least squares would take a noisy signal for one that answers.

    Args:
        weights: (n, S) in force between one round and the next, n of them.
        signals: (n + 1, S) of the rounds at their ends.

    Returns:
        share per round and unit of share; NaN for fewer than three intervals, or weights that have not moved.

    Source: W. H. Greene, Econometric Analysis (2012), section 8.3 (the instrumental variables estimator).
    """
    if len(weights) < 3:
        return math.nan
    w, z, change = weights[1:], weights[:-1], np.diff(signals, axis=0)[1:]
    w, z, change = (x - np.mean(x, axis=0) for x in (w, z, change))
    moved = float(np.sum(w * z))
    # Products of rounding errors, or weights that turn back each round, tell nothing.
    return -float(np.sum(change * z)) / moved if moved > 1e-20 else math.nan


def _clip_renorm_without_floor(w: Floats, floor: float) -> Floats:
    return clip_renorm(w)


Projection = Callable[[Floats, float], Floats]

PROJECTIONS: dict[str, Projection] = {"euclidean": project_to_floor, "clip_renorm": _clip_renorm_without_floor}
