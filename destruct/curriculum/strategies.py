"""The rules that turn estimates into sampling weights, behind one interface and in one table.

Legend: S sources; weights, prior and target are shares (S,) that sum to 1.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from destruct.curriculum.dynamics import PROJECTIONS
from destruct.curriculum.estimates import Estimates, Floats
from destruct.curriculum.published import DoReMi, OnlineDataMixing
from destruct.curriculum.states import State
from destruct.curriculum.weight_dynamics import SIGNALS, Dials, WeightDynamics
from destruct.errors import DestructError


class Strategy(Protocol):
    """Sampling weights that follow the estimates; pure: the same estimates give the same weights, bit for bit."""

    def observe(self, estimates: Estimates) -> None:
        """Takes one round's estimates, of S sources, in."""
        ...

    def weights(self) -> Floats:
        """(S,) float64 shares of the tokens to draw from now on; the caller's own copy."""
        ...

    @property
    def target(self) -> Floats:
        """(S,) float64 mixture that the last estimates argue for, for the log; the caller's own copy."""
        ...

    def reasons(self) -> list[str]:
        """Of each source why it has its weight, in a word or two, since this object's last `observe`."""
        ...

    @property
    def held(self) -> int:
        """Rounds whose step could not be projected and was dropped."""
        ...

    @property
    def stability_margin(self) -> float:
        """Share per round and unit of share; NaN where it is not known or has no meaning."""
        ...

    def state_dict(self) -> State:
        """All that later weights depend on, as plain numbers and lists: unchanged by a pass through JSON; its layout is
        that of `states.py`."""
        ...

    def load_state_dict(self, state: State) -> None:
        """Goes on where `state_dict` was taken; raises DestructError where it does not fit."""
        ...


@dataclass(frozen=True, slots=True)
class Options:
    """What single strategies take besides the dials."""

    temperature: float = 1.0  # T >= 1 of `temperature`
    sizes: Floats | None = None  # (S,) training tokens, for `temperature`
    reference: Floats | None = None  # (S,) losses of a reference model, for `doremi`


class FixedWeights:
    """Strategies `uniform`, `static` and `temperature`: the weights of the start, whatever is measured.

    Args:
        weights: (S,) shares; DestructError unless none is negative and they sum to 1.
    """

    held = 0
    stability_margin = math.nan

    def __init__(self, weights: Floats):
        self._weights = weights.copy()
        self._exhausted = np.zeros_like(weights)

    def observe(self, estimates: Estimates) -> None:
        self._exhausted = estimates.exhausted

    def weights(self) -> Floats:
        return self._weights.copy()

    @property
    def target(self) -> Floats:
        return self._weights.copy()

    def reasons(self) -> list[str]:
        return ["exhausted" if gone else "fixed" for gone in self._exhausted]

    def state_dict(self) -> State:
        return {"shares": {}, "figures": {}, "levels": {}, "history": [], "counts": {}}

    def load_state_dict(self, state: State) -> None:
        """Nothing to load: the weights are the config's, also where another strategy wrote the state."""


def uniform(prior: Floats, dials: Dials, options: Options) -> FixedWeights:
    """Equal weights; the prior counts only for its length."""
    return FixedWeights(np.full(prior.size, 1 / prior.size))


def static(prior: Floats, dials: Dials, options: Options) -> FixedWeights:
    """The prior, unmoved."""
    return FixedWeights(prior)


def temperature(prior: Floats, dials: Dials, options: Options) -> FixedWeights:
    """w_k proportional to n_k^(1/T), n_k its training tokens: T = 1 by size, T = inf equal.

    Source: arXiv:1907.05019, where T = 5 balances a hundred languages.
    """
    if options.sizes is None:
        raise ValueError("temperature: the sizes of the sources are not given")
    logs = np.log(options.sizes) / options.temperature
    shares = np.exp(logs - np.max(logs))
    return FixedWeights(shares / np.sum(shares))


def literal(prior: Floats, dials: Dials, options: Options) -> WeightDynamics:
    """The specification's three lines, bit for bit; of the dials only eta and the signal.

    sampling_weights += eta * gradient
    sampling_weights = np.clip(sampling_weights, a_min=0, a_max=None)
    sampling_weights /= np.sum(sampling_weights)
    """
    bare = replace(dials, mu=0.0, lam=0.0, floor=0.0, projection="clip_renorm")
    return WeightDynamics(prior, bare, towards_target=False)


def second_order(prior: Floats, dials: Dials, options: Options) -> WeightDynamics:
    """Significant progress over a damped, floored mass on a spring."""
    return WeightDynamics(prior, dials, towards_target=True)


def doremi(prior: Floats, dials: Dials, options: Options) -> DoReMi:
    """See `DoReMi`."""
    if options.reference is None:
        raise ValueError("doremi: the reference losses of the sources are not given")
    return DoReMi(prior, options.reference)


def odm(prior: Floats, dials: Dials, options: Options) -> OnlineDataMixing:
    """See `OnlineDataMixing`."""
    return OnlineDataMixing(prior)


NO_OPTIONS = Options()


def make_strategy(name: str, prior: Floats, dials: Dials, options: Options = NO_OPTIONS) -> Strategy:
    """The strategy of that name; what a strategy has no use for it ignores (`uniform` all but the number of sources).

    Args:
        name: key of STRATEGIES.
        prior: (S,) w0.

    Raises:
        DestructError: a name is unknown, the prior is no mixture, or the dials are refused.
    """
    for key, value, table in (
        ("strategy", name, set(STRATEGIES)),
        ("signal", dials.signal, set(SIGNALS)),
        ("projection", dials.projection, set(PROJECTIONS)),
    ):
        if value not in table:
            raise DestructError(
                f"curriculum.{key}: {value!r} is not known", remedy=f"choose one of: {', '.join(sorted(table))}"
            )
    return STRATEGIES[name](_checked_shares(prior), dials, options)


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


STRATEGIES: dict[str, Callable[[Floats, Dials, Options], Any]] = {
    "uniform": uniform,
    "static": static,
    "temperature": temperature,
    "literal": literal,
    "second_order": second_order,
    "doremi": doremi,
    "odm": odm,
}
