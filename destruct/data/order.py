"""In which order a source gives its windows: endless or a number of epochs, and never stored."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from destruct.seeding import derive, permuted

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]


class Order(Protocol):
    """The sequence of windows that one source gives, by ordinal 0, 1, 2, ...; a pure function of the ordinal."""

    name: str

    def windows(self, first: int, count: int) -> Int64:
        """Which window each of the ordinals first, first + 1, ... is: at most (count,), fewer where the source ends."""

    def sizes(self, index: Int64) -> Float64:
        """Tokens of the windows at `index` (n,), as shares of a whole window's T: (n,) in (0, 1]."""

    def epochs(self, drawn: int) -> float:
        """How many times the source has been gone through after so many windows."""


class Shuffled:
    """The order of a source whose windows are counted: each epoch visits every window once, in an order of its own.

        window(ordinal) = permuted(ordinal mod count, count, key of (seed, name, ordinal // count))

    Args:
        name: of the source; its order depends on the name and not on its place beside others.
        count: windows, at least 1.
        seed: the run's seed.
        sizes: as `Order.sizes`; None where every window is whole.
        max_epochs: after which it ends; None: never.
    """

    def __init__(
        self,
        name: str,
        count: int,
        seed: int,
        sizes: Callable[[Int64], Float64] | None = None,
        max_epochs: int | None = None,
    ):
        if count < 1:
            raise ValueError(f"Shuffled: {name!r} has {count} windows; it must have at least 1")
        self.name, self.count = name, count
        self._seed, self._sizes = seed, sizes
        self._end = None if max_epochs is None else count * max_epochs

    def windows(self, first: int, count: int) -> Int64:
        """As `Order.windows`."""
        end = first + count if self._end is None else min(first + count, self._end)
        ordinal = np.arange(first, max(first, end), dtype=np.int64)
        index = np.empty(len(ordinal), dtype=np.int64)
        epochs = ordinal // self.count
        for epoch in np.unique(epochs):
            mine = epochs == epoch
            key = derive(self._seed, "window order", self.name, int(epoch))
            index[mine] = permuted(ordinal[mine] % self.count, self.count, key)
        return index

    def sizes(self, index: Int64) -> Float64:
        """As `Order.sizes`."""
        return np.ones(len(index)) if self._sizes is None else self._sizes(index)

    def epochs(self, drawn: int) -> float:
        """As `Order.epochs`."""
        return drawn / self.count
