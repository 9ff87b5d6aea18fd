"""How far the policy has moved: KL on an update's own tokens, by a pass over them of its own."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from destruct.batch import ScoredBatch
from destruct.engine.base import TrainEngine
from destruct.engine.topology import Topology
from destruct.minibatch import Minibatch, micro_batches
from destruct.ppo.kl import k3
from destruct.rollout.packing import joined
from destruct.rollout.score import response_logprobs


def kl_to_reference(
    policy: TrainEngine, minibatches: list[Minibatch[ScoredBatch]], temperature: float, topology: Topology
) -> float:
    """k3(policy now || reference) on the update's own tokens, unweighted mean, nats per token: the KL constraint.

    All ranks call it.
    """
    return _mean_k3(policy, minibatches, temperature, topology, lambda scored, now: scored.reference_logprobs - now)


def kl_from_old(
    policy: TrainEngine, minibatches: list[Minibatch[ScoredBatch]], temperature: float, topology: Topology
) -> float:
    """k3(old || policy now) on the update's own tokens, mean, nats per token: what the early stop bounds.

    All ranks call it.
    """
    return _mean_k3(policy, minibatches, temperature, topology, lambda scored, now: now - scored.old_logprobs)


@torch.no_grad()
def _mean_k3(
    policy: TrainEngine,
    minibatches: list[Minibatch[ScoredBatch]],
    temperature: float,
    topology: Topology,
    log_ratio: Callable[[ScoredBatch, Tensor], Tensor],
) -> float:
    def several(parts: tuple[ScoredBatch, ...]) -> Iterator[Tensor]:
        now = response_logprobs(policy, joined([scored.rollouts for scored in parts]), temperature, ptx=False)
        for scored, said in zip(parts, now.split([len(scored.rollouts.responses) for scored in parts]), strict=True):
            yield k3(log_ratio(scored, said))[scored.rollouts.mask].double().sum()

    total = torch.zeros((), dtype=torch.float64, device=topology.device)
    for nats in micro_batches(minibatch.map_together(several) for minibatch in minibatches):
        total += nats
    tokens = sum(minibatch.response_tokens for minibatch in minibatches)
    return topology.sum(total).item() / max(1, tokens)
