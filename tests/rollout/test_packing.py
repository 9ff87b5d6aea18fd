"""Packing: who shares a minibatch, and how evenly its micro-batches are filled."""

import itertools
import random

import torch

from destruct.batch import PromptBatch, RolloutBatch
from destruct.engine.topology import Topology
from destruct.minibatch import FORWARD_TOKENS
from destruct.rollout.packing import assign, joined, pack

P, R = 4, 6


def rollouts(lengths: list[int]) -> RolloutBatch:
    b = len(lengths)
    windows = torch.arange(b * (P + R)).view(b, P + R)
    prompts = PromptBatch.full(0, P, windows, torch.zeros(b, dtype=torch.int64), torch.arange(b))
    mask = torch.arange(R) < torch.tensor(lengths)[:, None]
    return RolloutBatch(prompts, windows[:, P:], mask, torch.zeros(b, dtype=torch.bool), teacher_forced=False)


def test_like_widths_share_a_slot_worked_by_hand():
    """In descending order 7, 5, 4, 3, 1: cut after 7, 5 the slots take 2 * 7 and 3 * 4; after 7 alone 7 and 4 * 5."""
    assert assign([3, 7, 1, 5, 4], 2) == [[1, 3], [0, 2, 4]]


def test_equal_widths_are_spread_evenly():
    """32 over 4 slots, and 30: none takes more than 8."""
    for count, sizes in ((32, [8, 8, 8, 8]), (30, [8, 8, 8, 6])):
        assert [len(slot) for slot in assign([128] * count, 4)] == sizes


def test_a_wide_item_leaves_no_slot_empty():
    """10, then four of 1: a largest slot of 10 is had with two slots, and three are there; two of 2 with the third."""
    assert assign([1, 10, 1, 1, 1], 3) == [[1], [0, 2], [3, 4]]
    assert [len(slot) for slot in assign([1, 10, 1, 1, 1], 8)] == [1, 1, 1, 1, 1, 0, 0, 0]


def test_no_other_cut_of_the_descending_widths_has_a_smaller_largest_slot():
    """Against brute force over all cuts of seven widths into three slots."""
    g = random.Random(0)
    for _ in range(50):
        widths = [g.randint(1, 20) for _ in range(7)]
        slots = assign(widths, 3)
        assert sorted(itertools.chain(*slots)) == list(range(7))
        size = max(len(slot) * max(widths[i] for i in slot) for slot in slots if slot)
        down = sorted(widths, reverse=True)
        cuts = itertools.combinations_with_replacement(range(8), 2)
        parts = ((down[:a], down[a:b], down[b:]) for a, b in cuts)
        assert size == min(max(len(part) * max(part, default=0) for part in cut) for cut in parts)


def test_every_rollout_is_in_one_micro_batch_and_minibatches_do_not_depend_on_the_world_size():
    lengths = [1, 6, 2, 5, 3, 4, 6, 6, 1, 1, 2, 3]
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    members = {}
    for world in (1, 2, 4):
        parts = [pack(rollouts(lengths), order, 3, 2, Topology(r, world, torch.device("cpu"))) for r in range(world)]
        for m in range(3):
            micro = [b for rank in parts for b in rank[m].micro_batches]
            assert len(micro) == 2 * world
            samples = sorted(s for b in micro for s in b.prompts.sample.tolist())
            assert members.setdefault(m, samples) == samples
            totals = {(rank[m].response_tokens, rank[m].continuation_tokens) for rank in parts}
            assert totals == {(sum(lengths[s] for s in samples), 4 * R)}, "all ranks divide by the same counts"
    assert sorted(itertools.chain(*members.values())) == list(range(12))


def test_with_fewer_rollouts_than_slots_some_micro_batches_are_empty_but_there():
    packed = pack(rollouts([3, 2]), torch.arange(2), 1, 4, Topology(0, 1, torch.device("cpu")))
    assert sorted(len(b.tokens) for b in packed[0].micro_batches) == [0, 0, 1, 1]


def test_what_a_row_is_wide_is_its_prompt_and_what_is_read_behind_it():
    """With the continuations, too, the longer of both; teacher-forced, what the data has."""
    part = rollouts([1, 6, 3, 2])
    lengths = torch.tensor([4, 1, 4, 2]), torch.tensor([0, 2, 6, 2])
    shorter = PromptBatch(0, P, part.prompts.windows, *lengths, source=torch.zeros(4), sample=torch.arange(4))
    alone = Topology(0, 1, torch.device("cpu"))

    def members(ptx: bool, teacher_forced: bool) -> tuple[int, list[int]]:
        batch = RolloutBatch(shorter, part.responses, part.mask, part.stopped, teacher_forced)
        (minibatch,) = pack(batch, torch.arange(4), 1, 4, alone, ptx)
        return minibatch.padded_tokens, [b.prompts.sample.item() for b in minibatch.micro_batches]

    assert members(False, False) == (7, [1, 2, 0, 3])  # 5, 7, 7, 4
    assert members(True, False) == (10, [2, 1, 0, 3])  # 5, 7, 10, 4
    assert members(False, True) == (10, [2, 0, 1, 3])  # 4, 3, 10, 4: the last is the half of a slot of two


def test_micro_batches_that_are_joined_stay_within_their_bound_however_unlike_they_are():
    """One rollout of 516 tokens and 63 of 16 in 8 slots: joined to one, all 64 would be 516 wide."""
    windows = torch.zeros(64, 516, dtype=torch.int64)
    number = torch.arange(64)
    lengths = torch.where(number == 0, 512, 12)
    prompts = PromptBatch.full(0, 4, windows, torch.zeros_like(number), number)
    mask = torch.arange(512) < lengths[:, None]
    batch = RolloutBatch(prompts, windows[:, 4:], mask, torch.zeros(64, dtype=torch.bool), teacher_forced=False)
    (minibatch,) = pack(batch, number, 1, 8, Topology(0, 1, torch.device("cpu")))
    sizes = []

    def forward(parts):
        whole = joined(parts)
        sizes.append(len(whole.responses) * (4 + int(whole.lengths.max())))
        return parts

    minibatch.map_together(forward)
    assert len(sizes) > 1 and max(sizes) <= max(FORWARD_TOKENS, minibatch.padded_tokens)


def test_joined_micro_batches_are_the_rollouts_in_their_order():
    whole = rollouts([1, 6, 2, 5, 3])
    parts = [whole.select(torch.tensor(rows, dtype=torch.int64)) for rows in ([3, 0], [], [4, 1])]
    together, want = joined(parts), whole.select(torch.tensor([3, 0, 4, 1]))
    for name in ("responses", "mask", "stopped", "tokens"):
        assert torch.equal(getattr(together, name), getattr(want, name))
    for name in ("windows", "prompt_lengths", "continuation_lengths", "source", "sample"):
        assert torch.equal(getattr(together.prompts, name), getattr(want.prompts, name))
