"""The order of windows that come in shards, against a list of all windows."""

import numpy as np
import pytest

from destruct.data.order import SHARD, Streamed


class Counted:
    """Shards of so many windows."""

    def __init__(self, counts: list[int]):
        self.counts = counts
        self.asked: list[int] = []

    def count(self, shard: int) -> int | None:
        self.asked.append(shard)
        return self.counts[shard] if shard < len(self.counts) else None

    def sizes(self, index: np.ndarray) -> np.ndarray:
        return (index % SHARD + 1) / 100


COUNTS = [5, 0, 7, 1, 0]
"""Thirteen windows."""


def epoch_of(order: Streamed, epoch: int) -> list[tuple[int, int]]:
    """(shard, window) of one epoch's ordinals."""
    return [divmod(int(index), SHARD) for index in order.windows(epoch * 13, 13)]


def test_every_epoch_visits_each_window_once_shard_by_shard_in_an_order_of_its_own():
    order = Streamed("mine", Counted(COUNTS), seed=2)
    whole = [(shard, window) for shard, count in enumerate(COUNTS) for window in range(count)]
    orders = [epoch_of(order, epoch) for epoch in range(4)]
    for visited in orders:
        assert [shard for shard, _ in visited] == [shard for shard, _ in whole]
        assert sorted(visited) == whole
    assert len({tuple(visited) for visited in orders}) == 4
    assert epoch_of(Streamed("mine", Counted(COUNTS), seed=3), 0) != orders[0]
    assert epoch_of(Streamed("other", Counted(COUNTS), seed=2), 0) != orders[0]


def test_the_windows_from_any_ordinal_on_are_those_of_a_longer_look():
    whole = Streamed("mine", Counted(COUNTS), seed=2).windows(0, 60).tolist()
    for first in range(50):
        assert Streamed("mine", Counted(COUNTS), seed=2).windows(first, 10).tolist() == whole[first : first + 10]


def test_no_shard_is_asked_for_before_its_windows_are():
    shards = Counted(COUNTS)
    order = Streamed("mine", shards, seed=0)
    order.windows(0, 5)
    assert shards.asked == [0]
    order.windows(4, 2)
    assert shards.asked == [0, 1, 2], "the second is empty"
    order.windows(0, 100)
    assert shards.asked == [0, 1, 2, 3, 4, 5], "each once"


def test_it_ends_after_its_epochs_and_not_before():
    order = Streamed("mine", Counted(COUNTS), seed=0, max_epochs=2)
    assert len(order.windows(0, 100)) == 26 and len(order.windows(20, 100)) == 6 and len(order.windows(26, 1)) == 0


def test_epochs_are_counted_from_the_end_of_the_first_on():
    """What a longer look ahead knows of the length makes no difference: it is not the same after a resume."""
    order = Streamed("mine", Counted(COUNTS), seed=0)
    order.windows(0, 40)
    assert [order.epochs(drawn) for drawn in (0, 5, 12, 13, 26, 39)] == [0, 0, 0, 1, 2, 3]


def test_sizes_are_those_of_the_shards():
    assert Streamed("mine", Counted(COUNTS), seed=0).sizes(np.array([3, SHARD + 4])) == pytest.approx([0.04, 0.05])
