"""Which held-out windows a round scores: the ring, the budget, and arrays that do not belong together."""

import numpy as np
import pytest

from destruct.curriculum.panels import PanelLosses, affordable_size, next_start, panel_items


def starts(size: int, rounds: int) -> list[int]:
    """Where the panels of consecutive rounds begin."""
    found = [0]
    while len(found) < rounds:
        found.append(next_start(found[-1], size))
    return found


def test_a_fifth_of_the_panel_moves_on_each_round_around_the_ring():
    """Size 10 of 12: two items leave and two come in each round, and after six rounds the ring is closed."""
    panels = [panel_items(start, 10, 12).tolist() for start in starts(10, 7)]
    assert panels[0] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert panels[1] == [2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    assert panels[2] == [4, 5, 6, 7, 8, 9, 10, 11, 0, 1]
    assert panels[6] == panels[0]


def test_a_population_that_fits_is_evaluated_whole_and_a_tiny_panel_stays():
    assert panel_items(7, 100, 30).tolist() == list(range(30))
    assert starts(4, 8)[-1] == 0
    with pytest.raises(ValueError, match="population 0"):
        panel_items(0, 100, 0)


def test_every_held_out_item_is_evaluated_before_long():
    seen = np.unique(np.concatenate([panel_items(start, 100, 1003) for start in starts(100, 51)]))
    assert seen.tolist() == list(range(1003))


def test_what_a_round_may_evaluate_worked_by_hand():
    """1000 tokens trained on pay for 250; an item of each source together has 12, so 20 items and not 21."""
    assert affordable_size(100, 0.25, trained=1000.0, per_item=12) == 20
    assert affordable_size(100, 0.25, trained=1008.0, per_item=12) == 21
    assert affordable_size(15, 0.25, trained=1000.0, per_item=12) == 15, "no more than asked for"
    assert affordable_size(100, 0.25, trained=10.0, per_item=12) == 12, "an error bar needs a dozen"
    assert affordable_size(7, 0.25, trained=10.0, per_item=12) == 7, "unless fewer are asked for"
    assert affordable_size(100, 0.25, trained=0.0, per_item=12) == 100, "before any training"


@pytest.mark.parametrize(
    ("items", "losses", "sizes", "population", "problem"),
    [
        ([0, 1, 2], [1.0, 2.0], [1, 1, 1], None, r"losses is \(2,\) float64; it must be \(3,\)"),
        ([0, 0], [1.0, 2.0], [1, 1], None, "different"),
        ([0, 1], [1.0, 2.0], [1, 0], None, "at least 1 token"),
        ([0, 1], [1.0, 2.0], [1, 1], 1, "population is 1"),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(items, losses, sizes, population, problem):
    with pytest.raises(ValueError, match=problem):
        PanelLosses(np.array(items, np.int64), np.array(losses), np.array(sizes, np.int64), population)
