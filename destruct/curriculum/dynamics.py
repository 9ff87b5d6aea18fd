"""From measured progress to a target mixture, and from there to the next weights: pure functions of arrays (S,).

Legend: S sources; w weights, w0 prior, q target, all shares of drawn tokens that sum to 1; LP progress and SE its
standard error, nats per token and round.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from destruct.errors import DestructError

Floats = NDArray[np.float64]

# What the evidence may claim at most: a fifth of every target stays with the prior, so no source is given up for good.
MAX_CONFIDENCE = 0.8


class NotProjectable(ValueError):
    """No point of the simplex belongs to these weights: they are not finite, or clipping leaves none of them."""


class Target(NamedTuple):
    """Where the evidence points."""

    evidence: Floats  # (S,) u, progress beyond its error, nats per token and round
    confidence: float  # conf, share of the target that follows the evidence, in [0, max_confidence]
    weights: Floats  # (S,) q, sums to 1


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


def target_weights(
    progress: Floats, progress_se: Floats, prior: Floats, z: float, max_confidence: float = MAX_CONFIDENCE
) -> Target:
    """The mixture that the significant progress argues for, mixed with the prior by how much evidence there is.

        u_k  = max(LP_k - z * SE_k, 0)
        conf = max_confidence * sum(u) / (sum(u) + sum(SE))
        q    = conf * u / sum(u) + (1 - conf) * w0;    conf = 0 and q = w0 where sum(u) = 0 or a SE is infinite

    Args:
        progress: (S,) LP. A source with a figure that is not finite counts as LP = 0, SE = inf.
        progress_se: (S,) SE, at least 0; inf where nothing is known. One such source is enough to keep q at the prior:
            a mixture cannot be argued for while one of its parts has not been measured.
        prior: (S,) w0.
        z: standard errors by which progress must differ from 0 to count, at least 0.
        max_confidence: in [0, 1].
    """
    known = np.isfinite(progress) & np.isfinite(progress_se)
    # Only known sources are multiplied: with z = 0 an infinite error would make 0 * inf = NaN.
    evidence = np.zeros_like(prior)
    evidence[known] = np.maximum(progress[known] - z * progress_se[known], 0.0)
    total = float(np.sum(evidence))
    noise = float(np.sum(progress_se[known]))
    if not known.all() or total == 0 or not np.isfinite(total + noise):
        return Target(evidence, 0.0, prior.copy())
    confidence = max_confidence * total / (total + noise)
    return Target(evidence, confidence, confidence * (evidence / total) + (1 - confidence) * prior)


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


def _clip_renorm_without_floor(w: Floats, floor: float) -> Floats:
    return clip_renorm(w)


Projection = Callable[[Floats, float], Floats]

PROJECTIONS: dict[str, Projection] = {"euclidean": project_to_floor, "clip_renorm": _clip_renorm_without_floor}
