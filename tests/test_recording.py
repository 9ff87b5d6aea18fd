"""What the loop writes down: figures per source and per update."""

import math

import pytest
import torch

from destruct.batch import PromptBatch, RewardedBatch, RolloutBatch, ScoredBatch, TrainBatch
from destruct.engine.topology import Topology
from destruct.recording import explained_variance, mean_over_sources


def test_the_reward_is_averaged_per_source_first_and_a_source_that_was_not_drawn_is_left_out():
    """Source a: (1 + 3) / (1 + 3) = 1; source b: 8 / 2 = 4; source c: nothing.  (1 + 4) / 2."""
    updates = [[[1.0, 1], [8.0, 2], [0.0, 0]], [[3.0, 3], [0.0, 0], [0.0, 0]]]
    assert mean_over_sources(updates) == 2.5


def trained(returns: list[list[float]], values: list[list[float]], lengths: list[int]) -> TrainBatch:
    """Rollouts of which only returns, old values and lengths matter; P = 1."""
    b, r = len(returns), len(returns[0])
    windows = torch.zeros(b, r + 1, dtype=torch.int64)
    prompts = PromptBatch(0, 1, windows, torch.zeros(b, dtype=torch.int64), torch.arange(b))
    rollouts = RolloutBatch(
        prompts, windows, torch.arange(r) < torch.tensor(lengths)[:, None], torch.zeros(b, dtype=torch.bool)
    )
    zero, old = torch.zeros(b, r), torch.tensor(values)
    scored = ScoredBatch(RewardedBatch(rollouts, torch.zeros(b), torch.zeros(b, 1)), zero, zero, old, zero)
    return TrainBatch(scored, zero, torch.tensor(returns))


def test_explained_variance_over_two_micro_batches_worked_by_hand():
    """Returns 1, 3, 5, 7 have variance 5; errors 0, 1, 0, 1 have 1/4: 1 - 1/20.  Padding (99) is not read."""
    batches = [
        trained([[1.0, 3.0]], [[1.0, 2.0]], [2]),
        trained([[5.0, 99.0], [7.0, 99.0]], [[5.0, 0.0], [6.0, 0.0]], [1, 1]),
    ]
    alone = Topology(0, 1, torch.device("cpu"))
    assert explained_variance(batches, alone) == pytest.approx(0.95)
    assert math.isnan(explained_variance([trained([[2.0, 2.0]], [[0.0, 1.0]], [2])], alone)), "constant returns"
