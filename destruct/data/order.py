"""In which order a source gives its windows: endless or a number of epochs, and never stored."""

import bisect
import threading
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


SHARD = 1 << 32
"""Windows of a streamed source are addressed as shard * SHARD + window of the shard."""


class Shards(Protocol):
    """A source whose windows come in shards, of which nobody knows at first how many there are."""

    def count(self, shard: int) -> int | None:
        """Windows of a shard, which may be none; None behind the last shard.  May wait until the shard has been read.

        Raises:
            DestructError: it cannot be read.
        """

    def sizes(self, index: Int64) -> Float64:
        """As `Order.sizes`."""


class Streamed:
    """The order of a source in shards: one shard after another, each in an order of its own in each epoch.

        window(ordinal) = shard * SHARD + permuted(place, count of the shard, key of (seed, name, epoch, shard))

    Args:
        name: as for `Shuffled`.
        shards: its windows; the first shard has at least one.
        seed: the run's seed.
        max_epochs: after which it ends; None: never.
    """

    def __init__(self, name: str, shards: Shards, seed: int, max_epochs: int | None = None):
        self.name = name
        self._shards, self._seed, self._max_epochs = shards, seed, max_epochs
        self._ends: list[int] = []  # windows of the shards up to each one, as far as they have been asked for
        self._whole: int | None = None  # windows of all shards, once they are known
        self._growing = threading.Lock()  # one thread draws, another reads ahead

    def windows(self, first: int, count: int) -> Int64:
        """As `Order.windows`; waits for shards that have not been read."""
        parts = [np.empty(0, np.int64)]
        while count and (place := self._place(first)) is not None:
            epoch, shard, within = place
            size = self._ends[shard] - (self._ends[shard - 1] if shard else 0)
            taken = min(count, size - within)
            key = derive(self._seed, "window order", self.name, epoch, shard)
            parts.append(shard * SHARD + permuted(np.arange(within, within + taken, dtype=np.int64), size, key))
            first, count = first + taken, count - taken
        return np.concatenate(parts)

    def sizes(self, index: Int64) -> Float64:
        """As `Order.sizes`."""
        return self._shards.sizes(index)

    def epochs(self, drawn: int) -> float:
        """As `Order.epochs`, but 0 until it has been gone through once: how long a stream is shows at its end."""
        return drawn / self._whole if self._whole is not None and drawn >= self._whole else 0.0

    def _place(self, ordinal: int) -> tuple[int, int, int] | None:
        """Epoch, shard, and which one of the shard's windows; None behind the last epoch."""
        self._reach(ordinal)
        epoch, within = 0, ordinal
        if self._whole is not None:
            epoch, within = divmod(ordinal, self._whole)
        if self._max_epochs is not None and epoch >= self._max_epochs:
            return None
        shard = bisect.bisect_right(self._ends, within)
        return epoch, shard, within - (self._ends[shard - 1] if shard else 0)

    def _reach(self, ordinal: int) -> None:
        """Ask for shards until the ordinal is in one of them, or the stream has ended."""
        if self._ends and ordinal < self._ends[-1]:
            return  # without the lock, which may be held by who waits for the next shard
        with self._growing:
            while self._whole is None and not (self._ends and ordinal < self._ends[-1]):
                windows = self._shards.count(len(self._ends))
                if windows is None:
                    self._whole = self._ends[-1]
                else:
                    self._ends.append((self._ends[-1] if self._ends else 0) + windows)
