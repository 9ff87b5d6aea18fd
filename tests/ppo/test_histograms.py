"""Bins that are known beforehand: by hand, against numpy, and in parts that add up."""

import math

import numpy as np
import pytest
import torch

from destruct.ppo.histograms import ADVANTAGE_EDGES, LOG_RATIO_EDGES, BinCounts, edges_around_zero

CPU = torch.device("cpu")


def counted(edges: tuple[float, ...], values: torch.Tensor, chosen: torch.Tensor | None = None) -> list[int]:
    bins = BinCounts(edges, CPU)
    bins.add(values, torch.ones_like(values, dtype=torch.bool) if chosen is None else chosen)
    return bins.counts.tolist()


def test_four_bins_by_hand():
    """A value on an edge counts below it; what lies beyond the ends counts in the outer bins; padding in none."""
    values = torch.tensor([-9.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 9.0, 7.0])
    chosen = torch.tensor([True] * 8 + [False])
    assert counted((-2.0, -1.0, 0.0, 1.0, 2.0), values, chosen) == [2, 2, 2, 2]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_counts_in_none(value):
    assert counted((-1.0, 0.0, 1.0), torch.tensor([value, 0.5])) == [0, 1]


@pytest.mark.parametrize("edges", [LOG_RATIO_EDGES, ADVANTAGE_EDGES])
def test_bins_are_symmetrical_rise_in_width_and_count_as_numpy_does(edges):
    assert list(edges) == sorted(edges) and [-edge for edge in reversed(edges)] == list(edges)
    widths = np.diff(edges)[len(edges) // 2 : -1]  # the last one ends where it is cut
    assert (np.diff(widths) > 0).all() and (widths[1:] / widths[:-1] < 1.2).all()
    drawn = np.random.default_rng(0).standard_t(2, 5000).astype(np.float32)
    wanted, _ = np.histogram(drawn.clip(edges[0], edges[-1]), edges)
    assert counted(edges, torch.from_numpy(drawn)) == wanted.tolist()


def test_the_bin_in_the_middle_has_the_width_that_was_asked_for():
    edges = edges_around_zero(0.5, 10.0)
    middle = len(edges) // 2
    assert edges[middle] - edges[middle - 1] == pytest.approx(0.5, rel=1e-3) and edges[-1] == 10


def test_parts_add_up_whatever_the_dtype_and_the_shape():
    values = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(5) < torch.tensor([5, 0, 2, 3, 1, 4])[:, None]
    parts = BinCounts(ADVANTAGE_EDGES, CPU)
    for rows in (slice(0, 2), slice(2, 2), slice(2, 6)):
        parts.add(values[rows], mask[rows])
    assert parts.counts.tolist() == counted(ADVANTAGE_EDGES, values[mask])
    assert parts.counts.sum() == 15
