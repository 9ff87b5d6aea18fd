"""The typed batches that pass between the steps of an update.

Letters: B rollouts, P prompt tokens, R response tokens, T = P + R.  Rows are rollouts; responses are right-padded.
Each stage takes one frozen object and returns another:

    PromptBatch -> generate -> RolloutBatch -> reward -> RewardedBatch -> score -> ScoredBatch
        -> advantages -> TrainBatch -> update -> UpdateStats
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

BatchT = TypeVar("BatchT")
OtherT = TypeVar("OtherT")


def _require(owner: object, name: str, want: tuple[int, ...]) -> None:
    got = tuple(getattr(owner, name).shape)
    if got != want:
        raise ValueError(f"{type(owner).__name__}.{name} is {got}; it must be {want}")


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """B windows drawn from the mixture, the same on every rank."""

    draw: int  # number of this draw; only ever grows
    prompt_tokens: int  # P
    windows: Tensor  # (B, T) int64   prompt, then the true continuation
    source: Tensor  # (B,)   int64   index of the data set
    sample: Tensor  # (B,)   int64   global sample index: the address of a rollout's randomness

    def __post_init__(self) -> None:
        _require(self, "source", (len(self.windows),))
        _require(self, "sample", (len(self.windows),))

    def select(self, rows: Tensor) -> PromptBatch:
        """The windows at `rows` (b,) int64."""
        return PromptBatch(self.draw, self.prompt_tokens, self.windows[rows], self.source[rows], self.sample[rows])


@dataclass(frozen=True, slots=True)
class RolloutBatch:
    """Prompts with what the policy sampled after them, one token after another, or each after the data's own text."""

    prompts: PromptBatch
    responses: Tensor  # (B, R) int64  sampled tokens, then padding
    mask: Tensor  # (B, R) bool    True on sampled tokens, eos included: a prefix of each row
    stopped: Tensor  # (B,)   bool    the response ended with eos or a stop string rather than at R tokens
    teacher_forced: bool  # the state of a token is the true text before it, not what was sampled before it

    def __post_init__(self) -> None:
        b, t = self.prompts.windows.shape
        _require(self, "responses", (b, t - self.prompts.prompt_tokens))
        _require(self, "mask", (b, t - self.prompts.prompt_tokens))
        _require(self, "stopped", (b,))

    def select(self, rows: Tensor) -> RolloutBatch:
        """The rollouts at `rows` (b,) int64."""
        prompts = self.prompts.select(rows)
        return RolloutBatch(prompts, self.responses[rows], self.mask[rows], self.stopped[rows], self.teacher_forced)

    @property
    def tokens(self) -> Tensor:
        """(B, T) int64, what the networks read: prompt, response, padding; the window itself when teacher-forced."""
        if self.teacher_forced:
            return self.prompts.windows
        return torch.cat([self.prompts.windows[:, : self.prompts.prompt_tokens], self.responses], 1)

    @property
    def continuations(self) -> Tensor:
        """(B, R) int64: what the data has in the place of the responses."""
        return self.prompts.windows[:, self.prompts.prompt_tokens :]

    @property
    def lengths(self) -> Tensor:
        """(B,) int64: sampled tokens of each rollout."""
        return self.mask.sum(1)


@dataclass(frozen=True, slots=True)
class Minibatch(Generic[BatchT]):
    """One optimizer step's rollouts: this rank's micro-batches (as many as the accumulation; some may be empty)
    and the token counts of the whole minibatch on all ranks, by which every loss is normalised."""

    micro_batches: tuple[BatchT, ...]
    response_tokens: int
    continuation_tokens: int

    def map(self, stage: Callable[[BatchT], OtherT]) -> Minibatch[OtherT]:
        """The minibatch after `stage` has been applied to each micro-batch."""
        return Minibatch(tuple(map(stage, self.micro_batches)), self.response_tokens, self.continuation_tokens)


def micro_batches(minibatches: Iterable[Minibatch[BatchT]]) -> list[BatchT]:
    """All micro-batches of this rank, in order."""
    return [micro for minibatch in minibatches for micro in minibatch.micro_batches]


@dataclass(frozen=True, slots=True)
class RewardedBatch:
    """Rollouts with what they are worth, in which no KL penalty is."""

    rollouts: RolloutBatch
    rewards: Tensor  # (B, R) float32  reward units: weighted sum of the terms; a sequence's score on its last token
    score: Tensor  # (B,)   float32  reward units: sum of the rewards; their mean when teacher-forced
    terms: Tensor  # (B, K) float32  each term before its weight, in the config's order; a term per token as its mean

    def __post_init__(self) -> None:
        rows = len(self.rollouts.responses)
        _require(self, "rewards", tuple(self.rollouts.mask.shape))
        _require(self, "score", (rows,))
        _require(self, "terms", (rows, *self.terms.shape[1:]))


@dataclass(frozen=True, slots=True)
class ScoredBatch:
    """Rollouts with everything that is known before advantages; all 0 where the mask is False."""

    rewarded: RewardedBatch
    old_logprobs: Tensor  # (B, R) float32  nats, under the policy that sampled
    reference_logprobs: Tensor  # (B, R) float32  nats, under the reference
    old_values: Tensor  # (B, R) float32  reward units, V(s_t) before token t
    rewards: Tensor  # (B, R) float32  reward units: those of the terms, less the KL penalty
    reference_states: Tensor | None = None  # (mask.sum(), H) the reference's, where the loss has the exact KL to it

    def __post_init__(self) -> None:
        shape = tuple(self.rollouts.mask.shape)
        for name in ("old_logprobs", "reference_logprobs", "old_values", "rewards"):
            _require(self, name, shape)
        if self.reference_states is not None:
            _require(self, "reference_states", (int(self.rollouts.mask.sum()), *self.reference_states.shape[1:]))

    @property
    def rollouts(self) -> RolloutBatch:
        """What was sampled."""
        return self.rewarded.rollouts


@dataclass(frozen=True, slots=True)
class TrainBatch:
    """What the PPO update reads."""

    scored: ScoredBatch
    advantages: Tensor  # (B, R) float32  whitened over all ranks; 0 where the mask is False
    returns: Tensor  # (B, R) float32  reward units

    def __post_init__(self) -> None:
        shape = tuple(self.scored.rollouts.mask.shape)
        _require(self, "advantages", shape)
        _require(self, "returns", shape)


@dataclass(frozen=True, slots=True)
class UpdateStats:
    """What one update did, over all ranks.  KL in nats per token; norms before clipping, mean over the steps."""

    policy_loss: float
    value_loss: float
    ptx_loss: float  # nats per continuation token
    entropy: float  # nats per token
    approx_kl: float  # k3(old || new), mean over all minibatch passes
    approx_kl_k1: float  # the same by k1
    reference_kl: float  # k3(policy || reference), mean over all minibatch passes
    reference_kl_k1: float  # the same by k1
    reference_kl_exact: float  # KL over the whole vocabulary, as the loss has it; 0 where it has none
    first_ratio_error: float  # max |log ratio| of the first minibatch: 0 when scoring and training agree
    ratio_mean: float
    ratio_min: float
    ratio_max: float
    clip_fraction: float
    dual_clip_fraction: float  # the part of clip_fraction that the dual clip cut; 0 without one
    policy_grad_norm: float
    value_grad_norm: float
    steps: int  # optimizer steps taken by each network
    steps_planned: int
    skipped: int  # steps neither network took because a loss was not finite
    epochs: int  # passes made before the early stop
