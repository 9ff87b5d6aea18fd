"""Panels: which held-out windows a round scores, and the losses it found on them.

An item is one held-out window, named by its index in the source's held-out set; n items of a panel.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# Each round replaces a fifth of a panel: four fifths stay for paired differences, and no panel stays for good.
PANEL_TURNOVER = 5
# Below a dozen items or so an error bar says little; a budget does not go lower.
LEAST_PANEL = 12


def panel_items(start: int, size: int, population: int) -> Integers:
    """Held-out items that a round evaluates: a window which moves over the ring of all items.

        items = (start + (0 .. n-1)) mod population,    n = min(size, population)

    Args:
        start: where the window stands, at least 0; `next_start` moves it.
        size: items asked for, at least 1.
        population: held-out items of the source, at least 1; all of them are evaluated where size allows it.

    Returns:
        (n,) int64, all different, in ring order.

    Raises:
        ValueError: a figure is below its least.
    """
    if start < 0 or size < 1 or population < 1:
        raise ValueError(f"no panel from {start}, size {size}, population {population}")
    if population <= size:
        return np.arange(population, dtype=np.int64)
    return (start + np.arange(size, dtype=np.int64)) % population


def next_start(start: int, size: int) -> int:
    """Where the next panel begins; below 5 items it stays where it is: pairing is worth more than turnover."""
    return start + size // PANEL_TURNOVER


def affordable_size(asked: int, budget: float, trained: float, per_item: float) -> int:
    """Items per source that a round may evaluate within its budget.

        n = min(asked, max(LEAST_PANEL, floor(budget * trained / per_item)))

    Args:
        asked: items per source, at least 1.
        budget: tokens evaluated per token trained on.
        trained: tokens trained on since the round before; 0 before any, where nothing is known and all are affordable.
        per_item: tokens of one item of each source together.
    """
    if trained == 0:
        return asked
    return min(asked, max(LEAST_PANEL, int(budget * trained / per_item)))


@dataclass(frozen=True, slots=True, eq=False)
class PanelLosses:
    """Losses of the frozen model on one source's panel. Raises ValueError where the arrays do not belong together.

    A loss may be NaN or infinite (a diverging model): the source then counts as not measured while the window holds it.
    """

    items: Integers  # (n,) int64    held-out indices, all different, n >= 1
    losses: Floats  # (n,) float64  nats per token (or bits per byte), mean over the sequence
    sizes: Integers  # (n,) int64    what its loss is the mean over: predicted tokens, or their bytes; at least 1
    population: int | None = None  # held-out items of the source; None where endless: no finite-population correction

    def __post_init__(self) -> None:
        for name, dtype in (("items", np.int64), ("losses", np.float64), ("sizes", np.int64)):
            got = getattr(self, name)
            if got.dtype != dtype or got.shape != (self.items.size,):
                want = f"({self.items.size},) {np.dtype(dtype)}"
                raise ValueError(f"PanelLosses.{name} is {got.shape} {got.dtype}; it must be {want}")
        if self.items.size == 0 or np.unique(self.items).size != self.items.size:
            raise ValueError(f"PanelLosses.items must be different and at least one; there are {self.items.size}")
        if self.sizes.min() < 1:
            raise ValueError(f"PanelLosses.sizes holds {self.sizes.min()}; every sequence has at least 1 token")
        if self.population is not None and self.population < self.items.size:
            raise ValueError(f"PanelLosses.population is {self.population}; the panel has {self.items.size} items")
