"""Reward terms, a number per rollout or per token, and their weighted sum.

A term of the text reads the rollouts alone; a term of a model runs a forward, which all ranks make together.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from destruct.batch import RewardedBatch, RolloutBatch
from destruct.engine.base import FrozenEngine
from destruct.engine.topology import Topology
from destruct.minibatch import Minibatch
from destruct.rollout.packing import joined
from destruct.rollout.score import response_logprobs


class Decoder(Protocol):
    """The part of a tokenizer that the terms need."""

    def decode(self, ids: list[int]) -> str:
        """Text of the token ids."""


@dataclass(frozen=True, slots=True)
class RewardContext:
    """What the terms of the text need besides the rollouts."""

    ngram: int
    tokenizer: Decoder


@dataclass(frozen=True, slots=True)
class Term:
    """One reward term."""

    measure: Callable[[RolloutBatch, RewardContext], Tensor]  # (B,) float32, or (B, R) when per token
    per_token: bool = False


def repetition(rollouts: RolloutBatch, context: RewardContext) -> Tensor:
    """Minus the share of the response's n-grams that occurred earlier in it: (B,) in [-1, 0]; 0 when too short."""
    return _per_rollout(rollouts, lambda response, _: _distinct_share(response, context.ngram) - 1)


def _distinct_share(tokens: list[int], n: int) -> float:
    total = len(tokens) - n + 1
    if total <= 0:
        return 1.0
    distinct = len({tuple(tokens[i : i + n]) for i in range(total)})
    return distinct / total


def continuation_overlap(rollouts: RolloutBatch, context: RewardContext) -> Tensor:
    """Unigram F1 between the response and the true continuation, as multisets of tokens: (B,) in [0, 1]; 0 where the
    data has no continuation.

    Source: SQuAD's F1 (arXiv:1606.05250, section 6.1), over tokens instead of words.
    """
    return _per_rollout(rollouts, _f1)


def _f1(response: list[int], truth: list[int]) -> float:
    left = list(truth)
    shared = 0
    for token in response:
        if token in left:
            left.remove(token)
            shared += 1
    return 2 * shared / (len(response) + len(truth)) if response or truth else 0.0


def _per_rollout(rollouts: RolloutBatch, measure: Callable[[list[int], list[int]], float]) -> Tensor:
    pairs = zip(rollouts.response_ids(), rollouts.prompts.continuation_ids(), strict=True)
    values = [measure(response, truth) for response, truth in pairs]
    return torch.tensor(values, dtype=torch.float32, device=rollouts.responses.device)


def length(rollouts: RolloutBatch, context: RewardContext) -> Tensor:
    """Sampled tokens divided by R: (B,) in (0, 1]."""
    return rollouts.lengths.float() / rollouts.mask.shape[1]


def eos(rollouts: RolloutBatch, context: RewardContext) -> Tensor:
    """1 where the response ended by itself, 0 where it was cut: (B,)."""
    return rollouts.stopped.float()


def match(rollouts: RolloutBatch, context: RewardContext) -> Tensor:
    """1 where the drawn token is the text's own, 0 elsewhere: (B, R)."""
    return ((rollouts.responses == rollouts.continuations) & rollouts.prompts.continuation_mask).float()


REWARDS: dict[str, Term] = {
    "repetition": Term(repetition),
    "continuation_overlap": Term(continuation_overlap),
    "length": Term(length),
    "eos": Term(eos),
    "match": Term(match, per_token=True),
}
"""The terms that read the text alone."""


def frozen_likelihood(frozen: FrozenEngine) -> Term:
    """log p of each sampled token under the frozen model, at temperature 1: (B, R), nats.  All ranks call it."""
    return Term(lambda rollouts, _: response_logprobs(frozen, rollouts, 1.0, ptx=False), per_token=True)


class Reward:
    """The weighted sum of the config's terms.

    Args:
        weights: term -> weight, in the config's order.
        texts: the terms among them that read the text alone.
        models: the terms among them that run a model.
    """

    def __init__(
        self, weights: dict[str, float], texts: dict[str, Term], models: dict[str, Term], context: RewardContext
    ):
        self.context = context
        self.names = list(weights)
        self.weights = torch.tensor(list(weights.values()), dtype=torch.float32)
        self.texts, self.models = texts, models

    def __call__(
        self, minibatches: list[Minibatch[RolloutBatch]], topology: Topology
    ) -> list[Minibatch[RewardedBatch]]:
        """Score each rollout.

        Raises:
            DestructError: a user's function raised on some rank, or returned what it should not.
        """
        # The texts of all first: a user's function may raise on one rank alone, while the others wait in a gather.
        read = topology.together(lambda: [minibatch.map(self.of_texts) for minibatch in minibatches])
        return [minibatch.map_together(self._with_models) for minibatch in read]

    def of_texts(self, rollouts: RolloutBatch) -> tuple[RolloutBatch, dict[str, Tensor]]:
        """The rollouts with each term of the text as (B, R)."""
        return rollouts, {name: self._placed(term, rollouts) for name, term in self.texts.items()}

    def _with_models(self, read: tuple[tuple[RolloutBatch, dict[str, Tensor]], ...]) -> Iterator[RewardedBatch]:
        together = joined([rollouts for rollouts, _ in read])
        sizes = [len(rollouts.responses) for rollouts, _ in read]
        said = {name: self._placed(term, together).split(sizes) for name, term in self.models.items()}
        for place, (rollouts, grids) in enumerate(read):
            yield self._weighted(rollouts, grids | {name: parts[place] for name, parts in said.items()})

    def _weighted(self, rollouts: RolloutBatch, grids: dict[str, Tensor]) -> RewardedBatch:
        every = torch.stack([grids[name] for name in self.names], -1)  # (B, R, K)
        rewards = every @ self.weights.to(every.device)
        tokens = rollouts.lengths.clamp(min=1)
        terms = [
            grids[name].sum(1) / (tokens if (self.texts | self.models)[name].per_token else 1) for name in self.names
        ]
        score = rewards.sum(1) / (tokens if rollouts.teacher_forced else 1)
        return RewardedBatch(rollouts, rewards, score, torch.stack(terms, 1))

    def _placed(self, term: Term, rollouts: RolloutBatch) -> Tensor:
        """A term on its tokens: (B, R), a number per rollout on the last real one, 0 elsewhere."""
        values, mask = term.measure(rollouts, self.context), rollouts.mask
        if term.per_token:
            return torch.where(mask, values, 0.0)
        last = torch.arange(mask.shape[1], device=mask.device) == rollouts.lengths[:, None] - 1
        return torch.where(mask & last, values[:, None], 0.0)
