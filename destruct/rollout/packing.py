"""Which rollouts share a minibatch, and which of its micro-batches each one joins."""

from bisect import bisect_left
from collections.abc import Sequence

import torch

from destruct.batch import PromptBatch, RolloutBatch
from destruct.engine.topology import Topology
from destruct.minibatch import Minibatch


def assign(widths: list[int], slots: int) -> list[list[int]]:
    """Spread items over `slots` where each item takes the width of the widest beside it.

    Items of like widths come together: of all ways to cut the widths, in descending order, into so many slots this is
    one whose largest slot is smallest.  A slot that this leaves empty takes half of the largest that can be split.

    Returns:
        For each slot the item numbers in ascending order; a slot may stay empty.
    """
    order = sorted(range(len(widths)), key=lambda i: (-widths[i], i))
    if not order:
        return [[] for _ in range(slots)]
    widest = widths[order[0]]
    sizes = range(widest, widest * len(order) + 1)
    size = sizes[bisect_left(sizes, True, key=lambda limit: len(_cut(order, widths, limit)) <= slots)]
    found = _cut(order, widths, size)
    while len(found) < min(slots, len(order)):
        fullest = max((slot for slot in found if len(slot) > 1), key=lambda slot: len(slot) * widths[slot[0]])
        found.append(fullest[len(fullest) // 2 :])
        del fullest[len(fullest) // 2 :]
    return [sorted(slot) for slot in found] + [[] for _ in range(slots - len(found))]


def _cut(order: list[int], widths: list[int], limit: int) -> list[list[int]]:
    """The fewest slots of at most this size, the items in their order."""
    slots: list[list[int]] = []
    for item in order:
        if slots and (len(slots[-1]) + 1) * widths[slots[-1][0]] <= limit:
            slots[-1].append(item)
        else:
            slots.append([item])
    return slots


def pack(
    rollouts: RolloutBatch,
    order: torch.Tensor,
    minibatches: int,
    accumulation: int,
    topology: Topology,
    ptx: bool = False,
) -> list[Minibatch[RolloutBatch]]:
    """Split B rollouts, equal on all ranks, into minibatches of accumulation x world micro-batches each.

    Membership of a minibatch depends on `order` alone and never on the world size.  Micro-batches hold rollouts of like
    lengths, and about as many tokens as each other.

    Args:
        order: (B,) int64, a permutation of the rollouts.
        ptx: the true continuations are read beside the responses.

    Returns:
        This rank's micro-batches of each minibatch: slots rank, rank + world_size, ...
    """
    prompts = rollouts.prompts
    read = prompts.continuation_lengths if rollouts.teacher_forced else rollouts.lengths
    widths = prompts.prompt_lengths + (torch.maximum(read, prompts.continuation_lengths) if ptx else read)
    packed = []
    for members in order.to(rollouts.tokens.device).chunk(minibatches):
        part = rollouts.select(members)
        slots = assign(widths[members].tolist(), accumulation * topology.world_size)
        mine = slots[topology.rank :: topology.world_size]
        micro = tuple(part.select(torch.tensor(slot, dtype=torch.int64, device=part.tokens.device)) for slot in mine)
        counts = int(part.lengths.sum()), int(part.prompts.continuation_lengths.sum())
        # Whatever is joined is as wide as the widest.
        padded = max(map(len, slots)) * int(widths[members].max()) if len(members) else 0
        packed.append(Minibatch(micro, *counts, padded_tokens=padded))
    return packed


def joined(parts: Sequence[RolloutBatch]) -> RolloutBatch:
    """The rollouts of several micro-batches of one draw, one after another."""
    if len(parts) == 1:
        return parts[0]
    first, prompts = parts[0], [part.prompts for part in parts]
    together = PromptBatch(
        first.prompts.draw,
        first.prompts.prompt_tokens,
        torch.cat([p.windows for p in prompts]),
        torch.cat([p.prompt_lengths for p in prompts]),
        torch.cat([p.continuation_lengths for p in prompts]),
        torch.cat([p.source for p in prompts]),
        torch.cat([p.sample for p in prompts]),
    )
    return RolloutBatch(
        together,
        torch.cat([part.responses for part in parts]),
        torch.cat([part.mask for part in parts]),
        torch.cat([part.stopped for part in parts]),
        first.teacher_forced,
    )
