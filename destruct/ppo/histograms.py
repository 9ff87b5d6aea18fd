"""Histograms whose bins are known beforehand, so that those of micro-batches and ranks add up."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from destruct.ppo.kl import LOG_RATIO_CLAMP

GROWTH = 0.1
"""A bin is about a tenth wider than the next one towards 0, once it lies far from there."""


def edges_around_zero(width: float, largest: float) -> tuple[float, ...]:
    """Edges that lie symmetrically around 0: the bin in the middle is `width` wide, and the outer ones are wider.

    e_k = width / GROWTH * sinh(k GROWTH),    k = 1/2, 3/2, ... as long as e_k < largest, then largest
    """
    half, place = [], 0.5
    while (edge := width / GROWTH * math.sinh(place * GROWTH)) < largest:
        half.append(edge)
        place += 1
    half.append(largest)
    return (*(-edge for edge in reversed(half)), *half)


LOG_RATIO_EDGES = edges_around_zero(0.002, LOG_RATIO_CLAMP)
"""Nats.  What an update moves is mostly within a tenth of a nat of 0."""

ADVANTAGE_EDGES = edges_around_zero(0.1, 100.0)
"""Whitened advantages: most lie within 3 of 0."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many values lie in each of n bins."""

    edges: tuple[float, ...]  # n + 1, rising; the first and the last bin hold what lies beyond them, too
    counts: tuple[int, ...]  # n


class BinCounts:
    """Values counted on the device that they are on, without waiting for it.

    Args:
        edges: of n bins, rising; the first and the last bin hold what lies beyond them, too.
        device: of the values.
    """

    def __init__(self, edges: tuple[float, ...], device: torch.device):
        self._inner = torch.tensor(edges[1:-1], device=device)
        self._with_others = torch.zeros(len(edges), dtype=torch.int64, device=device)

    def add(self, values: Tensor, chosen: Tensor) -> None:
        """Count the chosen ones that are finite.

        Args:
            values: any shape.
            chosen: the same shape, bool.
        """
        others = len(self._with_others) - 1
        places = torch.bucketize(values.float(), self._inner).masked_fill(~(chosen & values.isfinite()), others)
        self._with_others.index_add_(0, places.flatten(), torch.ones_like(places).flatten())

    @property
    def counts(self) -> Tensor:
        """(n,) int64."""
        return self._with_others[:-1]
