"""Which rollouts share a minibatch, and which of its micro-batches each one joins."""

import torch

from destruct.batch import Minibatch, RolloutBatch
from destruct.engine.topology import Topology


def assign(lengths: list[int], slots: int) -> list[list[int]]:
    """Spread items over `slots` so that their token sums differ little: longest first, each to the lightest slot.

    Returns:
        For each slot the item numbers in ascending order; a slot may stay empty.
    """
    loads = [0] * slots
    members: list[list[int]] = [[] for _ in range(slots)]
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        lightest = min(range(slots), key=lambda s: (loads[s], s))
        loads[lightest] += lengths[item]
        members[lightest].append(item)
    return [sorted(slot) for slot in members]


def pack(
    rollouts: RolloutBatch, order: torch.Tensor, minibatches: int, accumulation: int, topology: Topology
) -> list[Minibatch[RolloutBatch]]:
    """Split B rollouts, equal on all ranks, into minibatches of accumulation x world micro-batches each.

    Membership of a minibatch depends on `order` alone and never on the world size.  Micro-batches are balanced by the
    columns up to the last sampled token: the padding before a prompt costs what a token does.

    Args:
        order: (B,) int64, a permutation of the rollouts.

    Returns:
        This rank's micro-batches of each minibatch: slots rank, rank + world_size, ...
    """
    prompt = rollouts.prompts.prompt_tokens
    packed = []
    for members in order.chunk(minibatches):
        part = rollouts.select(members.to(rollouts.tokens.device))
        lengths = part.lengths.tolist()
        slots = assign([prompt + length for length in lengths], accumulation * topology.world_size)
        mine = slots[topology.rank :: topology.world_size]
        micro = tuple(part.select(torch.tensor(slot, dtype=torch.int64, device=part.tokens.device)) for slot in mine)
        packed.append(Minibatch(micro, sum(lengths), int(part.prompts.continuation_lengths.sum())))
    return packed
