"""Packing: who shares a minibatch, and how evenly its micro-batches are filled."""

import itertools
import random

import torch

from destruct.batch import PromptBatch, RolloutBatch
from destruct.engine.topology import Topology
from destruct.rollout.packing import assign, pack

P, R = 4, 6


def rollouts(lengths: list[int]) -> RolloutBatch:
    b = len(lengths)
    windows = torch.arange(b * (P + R)).view(b, P + R)
    prompts = PromptBatch.full(0, P, windows, torch.zeros(b, dtype=torch.int64), torch.arange(b))
    mask = torch.arange(R) < torch.tensor(lengths)[:, None]
    return RolloutBatch(prompts, windows[:, P:], mask, torch.zeros(b, dtype=torch.bool), teacher_forced=False)


def test_longest_first_to_the_lightest_slot_worked_by_hand():
    """7 -> a; 5 -> b; 4 -> b (9); 3 -> a (10); 1 -> b (10)."""
    assert assign([3, 7, 1, 5, 4], 2) == [[0, 1], [2, 3, 4]]


def test_no_slot_is_heavier_than_four_thirds_of_the_best_possible():
    """Graham's bound for this rule, against brute force over all assignments of seven items to three slots."""
    g = random.Random(0)
    for _ in range(20):
        lengths = [g.randint(1, 20) for _ in range(7)]
        got = max(sum(lengths[i] for i in slot) for slot in assign(lengths, 3))
        best = min(
            max(sum(x for x, s in zip(lengths, choice, strict=True) if s == slot) for slot in range(3))
            for choice in itertools.product(range(3), repeat=7)
        )
        assert got <= 4 / 3 * best


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
