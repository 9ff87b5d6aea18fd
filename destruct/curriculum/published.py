"""Strategies that others have published, put on this project's clock: one turn a round, losses of held-out panels.

Legend: S sources; weights are shares (S,) that sum to 1.
"""

import math
from typing import Any

import numpy as np

from destruct.curriculum.estimates import MIN_ROUNDS, Estimates, Floats
from destruct.curriculum.states import per_source


class DoReMi:
    """Minimax reweighting by excess loss (DoReMi).

        s_k   = max(0, D_k - reference_k), the last one where D is not finite
        log a <- log a + 1.0 * s;    a <- (1 - c) softmax(log a) + c/S,    c = 1e-4
        w     = mean of a over the rounds so far

    Source: arXiv:2305.10429, algorithm 1; github.com/sangmichaelxie/doremi, trainer.py.  There a reweights the loss of
    a proxy model at every step and the average is for a second run; here it samples in the one run, by the average,
    since a itself comes near to one source alone.  There the excess is clipped token by token against a reference
    model; here panel by panel against a number per source.  The paper leaves open what a source without tokens in a
    batch scores; in the code, and here, it is its last score.

    Args:
        prior: (S,) weights of the start.
        reference: (S,) loss of a reference model on each source, in the unit of the estimates.
    """

    held = 0
    stability_margin = math.nan

    def __init__(self, prior: Floats, reference: Floats):
        self._reference = reference.copy()
        self._current, self._mean = prior.copy(), prior.copy()
        self._score = np.zeros_like(prior)
        self._turns = 1
        self._reasons = ["prior"] * prior.size

    def observe(self, estimates: Estimates) -> None:
        if estimates.round_index + 1 < MIN_ROUNDS:
            return
        known = np.isfinite(estimates.difficulty)
        excess = np.maximum(estimates.difficulty[known] - self._reference[known], 0.0)
        self._score[known] = np.minimum(excess, _LARGEST)
        with np.errstate(divide="ignore"):
            raised = np.log(self._current) + self._score
        self._current = (1 - _SMOOTHING) * _softmax(raised) + _SMOOTHING / raised.size
        self._turns += 1
        self._mean = self._mean + (self._current - self._mean) / self._turns
        self._reasons = ["exhausted" if gone else "excess loss" for gone in estimates.exhausted]

    def weights(self) -> Floats:
        return self._mean / math.fsum(self._mean)  # the same in whatever order the sources are

    @property
    def target(self) -> Floats:
        """(S,) the a of this round."""
        return self._current.copy()

    def reasons(self) -> list[str]:
        return list(self._reasons)

    def state_dict(self) -> dict[str, Any]:
        return {
            "shares": {"current": self._current.tolist(), "mean": self._mean.tolist()},
            "figures": {"score": self._score.tolist()},
            "levels": {},
            "history": [],
            "counts": {"turns": self._turns},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        keys = [("shares", "current"), ("shares", "mean"), ("figures", "score")]
        self._current, self._mean, self._score = per_source(state, self._score.size, keys)
        self._turns = int(state["counts"]["turns"])


class OnlineDataMixing:
    """Exp3 with the loss as the reward (ODM).

        R_k   <- R_k + m * D_k / 10,    m the batches (turns) since the round before
        eps_t =  min(1/S, sqrt(ln S / (S t)))
        w     =  (1 - S eps_t) softmax(eps_{t-1} R) + eps_t

    Source: arXiv:2312.02406, algorithm 1; github.com/alon-albalak/online-data-mixing, data_sampling_utils.py.  There
    one source is drawn at each step and only its R grows, by its loss over its probability; every source's loss is
    known here, so R grows by what that is on average, and the variance of the division is gone.  The paper's R is a
    moving average of the rewards, the published code adds them up; this is the code's.

    Args:
        prior: (S,) weights of the start, before the first turn.
    """

    held = 0
    stability_margin = math.nan

    def __init__(self, prior: Floats):
        self._weights = prior.copy()
        self._rewards = np.zeros_like(prior)
        self._turns = 0
        self._reasons = ["prior"] * prior.size

    def observe(self, estimates: Estimates) -> None:
        if estimates.round_index + 1 < MIN_ROUNDS:
            return
        known = np.isfinite(estimates.difficulty)
        loss = np.zeros_like(self._rewards)
        if known.any():
            # A source that is not measured is paid what the others are on average.
            loss = np.where(known, estimates.difficulty, np.mean(estimates.difficulty[known]))
        self._turns += max(estimates.batches, 1)
        self._rewards += max(estimates.batches, 1) * np.clip(loss, -_LARGEST, _LARGEST) / 10
        now, before, size = self._eps(self._turns), self._eps(self._turns - 1), self._rewards.size
        self._weights = (1 - size * now) * _softmax(before * self._rewards) + now
        self._weights /= np.sum(self._weights)
        self._reasons = ["exhausted" if gone else "loss" for gone in estimates.exhausted]

    def _eps(self, turn: int) -> float:
        size = self._rewards.size
        return min(1 / size, math.sqrt(math.log(size) / (size * turn))) if turn else 1 / size

    def weights(self) -> Floats:
        return self._weights.copy()

    @property
    def target(self) -> Floats:
        """(S,) the weights themselves."""
        return self._weights.copy()

    def reasons(self) -> list[str]:
        return list(self._reasons)

    def state_dict(self) -> dict[str, Any]:
        return {
            "shares": {"weights": self._weights.tolist()},
            "figures": {},
            "levels": {"rewards": self._rewards.tolist()},
            "history": [],
            "counts": {"turns": self._turns},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        keys = [("shares", "weights"), ("levels", "rewards")]
        self._weights, self._rewards = per_source(state, self._rewards.size, keys)
        self._turns = int(state["counts"]["turns"])


def _softmax(x: Floats) -> Floats:
    shares = np.exp(x - np.max(x))
    return shares / np.sum(shares)


_SMOOTHING = 1e-4  # c of DoReMi
_LARGEST = 1e6  # nats/token that a loss counts for at most, so that sums stay finite
