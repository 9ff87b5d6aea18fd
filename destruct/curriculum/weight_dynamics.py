"""Weights that move with momentum, damping and a floor: the strategies `second_order` and `literal`.

Legend: S sources; w weights, w0 prior, q target, shares (S,) that sum to 1.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from destruct.curriculum.dynamics import (
    PROJECTIONS,
    NotProjectable,
    check_stability,
    estimate_response,
    largest_response,
    momentum_step,
)
from destruct.curriculum.estimates import MIN_ROUNDS, Estimates, Floats
from destruct.curriculum.states import per_source
from destruct.curriculum.target import Target, TargetRules, choose_target, next_idle
from destruct.errors import DestructError

RESPONSE_ROUNDS = 12
"""Rounds from which the answer of the signal to the weights is estimated."""


@dataclass(frozen=True, slots=True)
class Dials:
    """How weights move; see `momentum_step` and `choose_target`."""

    eta: float  # step per round, > 0
    mu: float  # momentum, in [0, 1)
    lam: float  # pull towards the prior, >= 0
    floor: float  # least weight of any source, an absolute share; 0 with `clip_renorm`, which keeps none
    signal: str  # key of SIGNALS: the figure that the weights follow
    projection: str  # key of PROJECTIONS
    rules: TargetRules


class WeightDynamics:
    """Weights as a damped mass on a spring, pulled by a force.

        v <- mu * v + (1 - mu) * eta * (g - lam * (w - w0)),    w <- project(w + v)

    No weight moves before the third round. A step that cannot be projected (see `NotProjectable`) is dropped: the
    weights stay, the velocity becomes 0, and `held` counts it.

    Args:
        prior: (S,) w0, also the weights of the start.
        dials: how they move.
        towards_target: g = q - w0, so that with lam = 1 the weights come to rest at the target; else g is the bare
            signal, less its mean where it is a level and no rate.

    Raises:
        DestructError: the dials are unstable, or floor, prior and projection contradict each other.
    """

    def __init__(self, prior: Floats, dials: Dials, towards_target: bool):
        check_stability(dials.eta, dials.mu, dials.lam)
        _check_floor(dials.floor, prior, dials.projection)
        self._prior = prior.copy()
        self._signal = SIGNALS[dials.signal]
        self._project = PROJECTIONS[dials.projection]
        self._dials = dials
        # Credit is for what was learnt from so many tokens, a plateau is where nothing is; a level is not learnt.
        learnt = dials.signal == "progress"
        self._rules = dials.rules if learnt else replace(dials.rules, credit=0.0, plateaus=False)
        self._towards_target = towards_target
        self._weights, self._velocity = prior.copy(), np.zeros_like(prior)
        self._target, self._idle = prior.copy(), np.zeros_like(prior)
        self._reasons = ["prior"] * prior.size
        # Of each round its force g, and the weights that it set.
        self._history: list[tuple[Floats, Floats]] = []
        self.held = 0

    def observe(self, estimates: Estimates) -> None:
        d = self._dials
        signal, signal_se = self._signal(estimates)
        target = choose_target(estimates, signal, signal_se, self._prior, self._idle, self._rules)
        self._target = target.weights
        if estimates.round_index + 1 < MIN_ROUNDS:
            return
        self._idle = next_idle(self._idle, target, estimates, self._prior)
        force = target.weights - self._prior if self._towards_target else self._bare(signal, signal_se)
        velocity, moved = momentum_step(self._weights, self._velocity, force, self._prior, d.eta, d.mu, d.lam)
        try:
            self._weights, self._velocity = self._project(moved, d.floor), velocity
        except NotProjectable:
            self._velocity = np.zeros_like(self._prior)
            self.held += 1
        self._history = [*self._history, (force, self._weights)][-RESPONSE_ROUNDS:]
        self._reasons = self._why(estimates, target)

    def _bare(self, signal: Floats, signal_se: Floats) -> Floats:
        """g = x - mean(x) of a level, LP itself; 0 for a source of which nothing is known."""
        rate = self._dials.signal == "progress"
        known = np.isfinite(signal) & (np.isfinite(signal_se) if rate else True)
        force = np.zeros_like(self._prior)
        if known.any():
            force[known] = signal[known] if rate else signal[known] - np.mean(signal[known])
        return force

    def _why(self, estimates: Estimates, target: Target) -> list[str]:
        if not self._towards_target:
            return ["exhausted" if gone else self._dials.signal for gone in estimates.exhausted]
        at_floor = self._weights <= self._dials.floor * (1 + 1e-9)
        reasons = []
        for k in range(self._prior.size):
            if estimates.exhausted[k]:
                reasons.append("exhausted")
            elif not target.eligible[k]:
                reasons.append("not measured yet")
            elif at_floor[k]:
                reasons.append("floor")
            elif target.held[k]:
                reasons.append("plateau")
            elif target.rescued[k] > 0:
                reasons.append("forgetting")
            else:
                reasons.append("progress" if target.evidence[k] > 0 else "exploration")
        return reasons

    def weights(self) -> Floats:
        return self._weights.copy()

    @property
    def target(self) -> Floats:
        """(S,) q of `choose_target`; the strategy `literal` does not steer by it."""
        return self._target.copy()

    def reasons(self) -> list[str]:
        return list(self._reasons)

    @property
    def stability_margin(self) -> float:
        """How much more strongly the force could answer the weights before they swing ever wider: the bound of
        `largest_response` less the estimate from the last rounds; NaN while there is none."""
        if len(self._history) < MIN_ROUNDS:
            return math.nan
        forces = np.array([force for force, _ in self._history])
        weights = np.array([weights for _, weights in self._history])
        return largest_response(self._dials.mu, self._dials.lam) - estimate_response(weights[:-1], forces)

    def state_dict(self) -> dict[str, Any]:
        return {
            "shares": {"weights": self._weights.tolist(), "target": self._target.tolist()},
            "figures": {"velocity": self._velocity.tolist()},
            "levels": {"idle": self._idle.tolist()},
            "history": [[force.tolist(), weights.tolist()] for force, weights in self._history],
            "counts": {"held": self.held},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        keys = [("shares", "weights"), ("shares", "target"), ("figures", "velocity"), ("levels", "idle")]
        self._weights, self._target, self._velocity, self._idle = per_source(state, self._prior.size, keys)
        self._history = [(np.array(force), np.array(weights)) for force, weights in state["history"]]
        self.held = int(state["counts"]["held"])


def _check_floor(floor: float, prior: Floats, projection: str) -> None:
    if projection == "clip_renorm" and floor > 0:
        raise DestructError(
            f"projection clip_renorm keeps no floor, yet a floor of {floor:g} is asked for",
            remedy="set curriculum.projection: euclidean, or curriculum.floor: 0",
        )
    if floor > np.min(prior):
        raise DestructError(
            f"source {np.argmin(prior)} has a prior of {np.min(prior):.4g}, below the floor of {floor:.4g}",
            remedy=f"lower curriculum.floor until that is at most {np.min(prior):.4g}, or raise the prior",
        )


def _progress(estimates: Estimates) -> tuple[Floats, Floats]:
    return estimates.progress, estimates.progress_se


def _metric(estimates: Estimates) -> tuple[Floats, Floats]:
    return estimates.metric, estimates.difficulty_se


def _advantage(estimates: Estimates) -> tuple[Floats, Floats]:
    return estimates.advantage, estimates.advantage_se


def _reward_variance(estimates: Estimates) -> tuple[Floats, Floats]:
    return estimates.reward_variance, estimates.reward_variance_se


SIGNALS: dict[str, Callable[[Estimates], tuple[Floats, Floats]]] = {
    "progress": _progress,
    "metric": _metric,
    "advantage": _advantage,
    "reward_variance": _reward_variance,
}
"""What weights can follow, each with its standard error."""
