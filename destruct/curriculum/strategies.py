"""Rules that turn estimates into sampling weights, behind one interface and in one table.

Legend: S sources; weights, prior and target are shares (S,) that sum to 1.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from destruct.curriculum.dynamics import (
    PROJECTIONS,
    NotProjectable,
    check_stability,
    momentum_step,
    target_weights,
)
from destruct.curriculum.estimates import MIN_ROUNDS, Estimates
from destruct.errors import DestructError

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class DynamicsSettings:
    """How weights move; see `momentum_step` and `target_weights`."""

    eta: float  # step per round, > 0
    mu: float  # momentum, in [0, 1)
    lam: float  # pull towards the prior, >= 0
    floor: float  # least weight of any source, an absolute share; 0 with `clip_renorm`, which keeps none
    z: float  # standard errors by which progress must differ from 0, >= 0
    signal: str  # key of SIGNALS: what g is
    projection: str  # key of PROJECTIONS


class Strategy(Protocol):
    """Sampling weights that follow the estimates; pure: the same estimates give the same weights, bit for bit."""

    def observe(self, estimates: Estimates) -> None:
        """Takes one round's estimates in; raises ValueError where they are of another number of sources."""
        ...

    def weights(self) -> Floats:
        """(S,) float64 shares of the tokens to draw from now on; the caller's own copy."""
        ...

    @property
    def target(self) -> Floats:
        """(S,) float64 mixture that the last estimates argue for, for the log; the caller's own copy."""
        ...

    @property
    def held(self) -> int:
        """Rounds whose step could not be projected and was dropped."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that later weights depend on, as plain numbers and lists: unchanged by a pass through JSON."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was taken; raises DestructError where it does not fit."""
        ...


class FixedWeights:
    """Strategies `uniform` and `static`: the weights of the start, whatever is measured.

    Args:
        weights: (S,) shares; DestructError unless none is negative and they sum to 1.
    """

    held = 0

    def __init__(self, weights: Floats):
        self._weights = _checked_shares(weights)

    def observe(self, estimates: Estimates) -> None:
        _check_sources(estimates, self._weights)

    def weights(self) -> Floats:
        return self._weights.copy()

    @property
    def target(self) -> Floats:
        return self._weights.copy()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load: the weights are the config's, also where another strategy wrote the state."""


class WeightDynamics:
    """Weights with momentum, a pull towards the prior and a floor; strategies `second_order` and `literal`.

        v <- mu * v + (1 - mu) * eta * (g - lam * (w - w0)),    w <- project(w + v)

    No weight moves before the third round. A step that cannot be projected (see `NotProjectable`) is dropped: the
    weights stay, the velocity becomes 0, and `held` counts it.

    Args:
        prior: (S,) w0, also the weights of the start.
        settings: how they move.

    Raises:
        DestructError: the settings are unstable, or floor, prior and projection contradict each other.
    """

    def __init__(self, prior: Floats, settings: DynamicsSettings):
        check_stability(settings.eta, settings.mu, settings.lam)
        self._prior = _checked_shares(prior)
        self._signal = _entry(SIGNALS, settings.signal, "signal")
        self._project = _entry(PROJECTIONS, settings.projection, "projection")
        _check_floor(settings.floor, self._prior, settings.projection)
        self._settings = settings
        self._weights = self._prior.copy()
        self._velocity = np.zeros_like(self._prior)
        self._target = self._prior.copy()
        self.held = 0

    def observe(self, estimates: Estimates) -> None:
        _check_sources(estimates, self._prior)
        s = self._settings
        self._target = target_weights(estimates.progress, estimates.progress_se, self._prior, s.z).weights
        if estimates.round_index + 1 < MIN_ROUNDS:
            return
        gradient = self._signal(estimates, self._target, self._prior)
        velocity, moved = momentum_step(self._weights, self._velocity, gradient, self._prior, s.eta, s.mu, s.lam)
        try:
            self._weights, self._velocity = self._project(moved, s.floor), velocity
        except NotProjectable:
            self._velocity = np.zeros_like(self._prior)
            self.held += 1

    def weights(self) -> Floats:
        return self._weights.copy()

    @property
    def target(self) -> Floats:
        """(S,) q of `target_weights`; only the signal `target` steers by it."""
        return self._target.copy()

    def state_dict(self) -> dict[str, Any]:
        return {
            "weights": self._weights.tolist(),
            "velocity": self._velocity.tolist(),
            "target": self._target.tolist(),
            "held": self.held,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        loaded = {name: np.array(state.get(name, ()), dtype=np.float64) for name in ("weights", "velocity", "target")}
        for name, array in loaded.items():
            if array.shape != self._prior.shape:
                raise DestructError(
                    f"the checkpoint's curriculum has {array.size} {name}; this run has {self._prior.size} sources",
                    remedy="resume with the sources and the strategy of the checkpoint, or start a new run",
                )
        self._weights, self._velocity, self._target = loaded["weights"], loaded["velocity"], loaded["target"]
        self.held = int(state["held"])


def target_signal(estimates: Estimates, target: Floats, prior: Floats) -> Floats:
    """g = q - w0: with lam = 1 the weights come to rest at the target."""
    return target - prior


def metric_signal(estimates: Estimates, target: Floats, prior: Floats) -> Floats:
    """g = M - mean(M) over the sources with a finite metric, 0 for the others."""
    known = np.isfinite(estimates.metric)
    gradient = np.zeros_like(prior)
    if known.any():
        gradient[known] = estimates.metric[known] - np.mean(estimates.metric[known])
    return gradient


def progress_signal(estimates: Estimates, target: Floats, prior: Floats) -> Floats:
    """g = LP, 0 for a source of which nothing is known."""
    known = np.isfinite(estimates.progress) & np.isfinite(estimates.progress_se)
    return np.where(known, estimates.progress, 0.0)


def uniform(prior: Floats, settings: DynamicsSettings) -> FixedWeights:
    """Equal weights; the prior counts only for its length."""
    return FixedWeights(np.full(prior.size, 1 / prior.size))


def static(prior: Floats, settings: DynamicsSettings) -> FixedWeights:
    """The prior, unmoved."""
    return FixedWeights(prior)


def literal(prior: Floats, settings: DynamicsSettings) -> WeightDynamics:
    """The specification's three lines, bit for bit; of the settings only eta, and the signal, `metric` or `progress`.

    sampling_weights += eta * gradient
    sampling_weights = np.clip(sampling_weights, a_min=0, a_max=None)
    sampling_weights /= np.sum(sampling_weights)
    """
    return WeightDynamics(prior, replace(settings, mu=0.0, lam=0.0, floor=0.0, projection="clip_renorm"))


def second_order(prior: Floats, settings: DynamicsSettings) -> WeightDynamics:
    """Significant progress over a damped, floored mass on a spring; its signal is always the target."""
    return WeightDynamics(prior, replace(settings, signal="target"))


def make_strategy(name: str, prior: Floats, settings: DynamicsSettings) -> Strategy:
    """The strategy of that name; what a strategy has no use for it ignores (`uniform` all but the number of sources).

    Args:
        name: key of STRATEGIES.
        prior: (S,) w0.

    Raises:
        DestructError: a name is unknown, or the settings are refused.
    """
    return _entry(STRATEGIES, name, "strategy")(prior, settings)


def _entry(table: dict[str, Any], name: str, key: str) -> Any:
    if name not in table:
        raise DestructError(
            f"curriculum.{key}: {name!r} is not known", remedy=f"choose one of: {', '.join(sorted(table))}"
        )
    return table[name]


def _checked_shares(shares: Floats) -> Floats:
    shares = np.array(shares, dtype=np.float64)
    # 1e-6: shares typed by hand as thirds to seven digits are meant to sum to 1.
    fits = shares.ndim == 1 and shares.size > 0 and np.all(shares >= 0) and abs(np.sum(shares) - 1) <= 1e-6
    if not fits:
        raise DestructError(
            f"prior {shares.tolist()} is not a mixture: one share per source, none negative, sum 1",
            remedy="divide the shares by their sum",
        )
    return shares


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


def _check_sources(estimates: Estimates, weights: Floats) -> None:
    if estimates.difficulty.shape != weights.shape:
        raise ValueError(f"estimates of {estimates.difficulty.size} sources for weights of {weights.size}")


Signal = Callable[[Estimates, Floats, Floats], Floats]

SIGNALS: dict[str, Signal] = {"target": target_signal, "metric": metric_signal, "progress": progress_signal}

STRATEGIES: dict[str, Callable[[Floats, DynamicsSettings], Strategy]] = {
    "uniform": uniform,
    "static": static,
    "literal": literal,
    "second_order": second_order,
}
