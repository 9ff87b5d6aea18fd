"""Scoring: old and reference logprobs, values and rewards of packed rollouts, then their advantages."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from destruct.batch import RewardedBatch, RolloutBatch, ScoredBatch, TrainBatch
from destruct.engine.base import FrozenEngine, TrainEngine
from destruct.engine.topology import Topology
from destruct.minibatch import Minibatch, micro_batches
from destruct.ops.rows import KeepStates, ScoreRows
from destruct.ppo.advantages import compute_gae, masked_moments, whiten
from destruct.ppo.kl import k1
from destruct.rollout.packing import joined


@dataclass(frozen=True, slots=True)
class PolicyInputs:
    """One micro-batch as the networks read it: n rollouts and, with PTX, after them the m <= n of their windows of the
    data that have a continuation.

    Each row begins with the first token of its prompt, and as many columns are there as the longest one has; what
    stands behind a shorter one is seen by nothing that is asked for.  Teacher-forced rollouts are windows already:
    their PTX rows are the same hidden states with other targets.
    """

    tokens: Tensor  # (n or n + m, W) int64
    rows: Tensor  # (N,) int64     hidden states that predict: N_response response rows, then PTX rows
    targets: Tensor  # (N,) int64
    temperature: Tensor  # (N,) float32   the sampling temperature; 1 on PTX rows, as in validation
    is_response: Tensor  # (N,) bool


def policy_inputs(rollouts: RolloutBatch, temperature: float, ptx: bool) -> PolicyInputs:
    """Lay a micro-batch out for the networks; scoring and training use the same layout, so their products agree."""
    prompts, tokens, mask, targets = rollouts.prompts, rollouts.tokens, rollouts.mask, rollouts.responses
    n, begins = len(tokens), prompts.prompt_lengths
    read = prompts.continuation_lengths if rollouts.teacher_forced else rollouts.lengths
    if ptx and rollouts.teacher_forced:
        mask = torch.cat([mask, prompts.continuation_mask])
        targets = torch.cat([targets, rollouts.continuations])
    elif ptx:
        written = prompts.continuation_lengths > 0
        mask = torch.cat([mask, prompts.continuation_mask[written]])
        targets = torch.cat([targets, rollouts.continuations[written]])
        tokens = torch.cat([tokens, prompts.windows[written]])
        begins = torch.cat([begins, begins[written]])
        read = torch.cat([read, prompts.continuation_lengths[written]])
    tokens = _from_the_first(tokens, prompts.prompt_tokens - begins, begins + read)
    row, step = mask.nonzero(as_tuple=True)
    is_response = row < n
    sequence = row % max(1, n) if rollouts.teacher_forced else row
    return PolicyInputs(
        tokens,
        rows=sequence * tokens.shape[1] + begins[sequence] - 1 + step,
        targets=targets[row, step],
        temperature=torch.where(is_response, temperature, 1.0),
        is_response=is_response,
    )


def _from_the_first(tokens: Tensor, start: Tensor, lengths: Tensor) -> Tensor:
    """Rows (n, T) moved to the left by `start` (n,), as wide as the largest of `lengths` (n,)."""
    width = int(lengths.max()) if len(lengths) else 1
    column = start[:, None] + torch.arange(width, device=tokens.device)
    return tokens.gather(1, column.clamp(max=tokens.shape[1] - 1))


@dataclass(frozen=True, slots=True)
class ScoreSettings:
    """The numbers that scoring depends on."""

    temperature: float
    ptx: bool  # PTX rows ride along, so that the products are those of training
    kl_coef: float  # reward units per nat, subtracted per token; 0 when the penalty is not in the reward
    exact_kl: bool  # the loss has the exact KL to the reference, whose hidden states are kept for it


def score(
    minibatch: Minibatch[RewardedBatch],
    policy: TrainEngine,
    reference: FrozenEngine,
    value: TrainEngine,
    settings: ScoreSettings,
) -> Minibatch[ScoredBatch]:
    """Score a minibatch; r_t = the terms' reward of t - kl_coef * k1_t.

    The policy reads each micro-batch by itself, as it will in training, the others several at once.

    Source: arXiv:1909.08593 eq. 2, with the penalty per token.
    """

    @torch.no_grad()
    def several(parts: tuple[RewardedBatch, ...]) -> Iterator[ScoredBatch]:
        inputs = policy_inputs(joined([part.rollouts for part in parts]), settings.temperature, ptx=False)
        said = reference(inputs.tokens, inputs.rows, KeepStates(ScoreRows(inputs.targets, inputs.temperature)))
        counts = [int(part.rollouts.mask.sum()) for part in parts]
        columns = said.scores.logprobs, value(inputs.tokens, inputs.rows), said.hidden
        for rewarded, anchor, values, states in zip(parts, *(column.split(counts) for column in columns), strict=True):
            rollouts, mask = rewarded.rollouts, rewarded.rollouts.mask
            old = response_logprobs(policy, rollouts, settings.temperature, settings.ptx)
            reference_logprobs = spread(anchor, mask)
            rewards = rewarded.rewards - settings.kl_coef * k1(reference_logprobs - old) * mask
            kept = states.clone() if settings.exact_kl else None
            yield ScoredBatch(rewarded, old, reference_logprobs, spread(values, mask), rewards, kept)

    return minibatch.map_together(several)


@torch.no_grad()
def response_logprobs(
    engine: TrainEngine | FrozenEngine, rollouts: RolloutBatch, temperature: float, ptx: bool
) -> Tensor:
    """log pi(a|s) of the sampled tokens: (B, R) float32 nats, 0 where the mask is False."""
    inputs = policy_inputs(rollouts, temperature, ptx)
    asked = ScoreRows(inputs.targets, inputs.temperature, as_trained=True)
    scores = engine(inputs.tokens, inputs.rows, asked)
    return spread(scores.logprobs[inputs.is_response], rollouts.mask)


def spread(values: Tensor, mask: Tensor) -> Tensor:
    """Per-token values (mask.sum(),) back on their places: (B, R) float32, 0 elsewhere."""
    grid = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
    grid[mask] = values.float()
    return grid


def with_advantages(
    minibatches: list[Minibatch[ScoredBatch]], gamma: float, lam: float, topology: Topology
) -> list[Minibatch[TrainBatch]]:
    """GAE per rollout, then whitening over the response tokens of all rollouts on all ranks."""

    def estimate(scored: ScoredBatch) -> tuple[ScoredBatch, Tensor, Tensor]:
        returns, advantages = compute_gae(scored.rewards, scored.old_values, scored.rollouts.mask, gamma, lam)
        return scored, returns, advantages

    estimated = [minibatch.map(estimate) for minibatch in minibatches]
    local = [masked_moments(advantages, scored.rollouts.mask) for scored, _, advantages in micro_batches(estimated)]
    moments = topology.sum(torch.stack(local).sum(0))

    def train_batch(micro: tuple[ScoredBatch, Tensor, Tensor]) -> TrainBatch:
        scored, returns, advantages = micro
        return TrainBatch(scored, whiten(advantages, scored.rollouts.mask, moments), returns)

    return [minibatch.map(train_batch) for minibatch in estimated]
