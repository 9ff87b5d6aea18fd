"""Which window comes next: live weights, exact resume, and one order at any world size.

The draw is global (the caller slices it by rank) and its whole state is a few numbers per source.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from destruct.seeding import derive, permuted

Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Draw:
    """One global batch of B windows, by address."""

    number: int
    """How many draws came before it in the run."""
    source: Int64
    """(B,) int64: index of the source, in the order of the config."""
    index: Int64
    """(B,) int64: window of that source."""
    sample: Int64
    """(B,) int64: global sample index, a running count over all draws."""

    def __post_init__(self) -> None:
        for name in ("index", "sample"):
            got, want = getattr(self, name).shape, self.source.shape
            if got != want or len(want) != 1:
                raise ValueError(f"Draw.{name} is {got}; source is {want}, which must be (B,)")


class Mixture:
    """Draws windows from S sources by largest deficit against whatever weights it is given.

        for each sample:  deficit += w;  k = argmax(deficit), the first of equals;  deficit[k] -= 1

    A source is never a whole window ahead of its accumulated weights, and behind by at most sum of 1/i for i = 2..S,
    however the weights move.  A source's n-th window is `permuted(n mod size, size, key of (seed, name, n // size))`:
    every epoch visits every window once, in an order of its own, and no order is ever stored.

    Args:
        sizes: windows of each source, all at least 1.
        seed: the run's seed.
        names: of the sources, all different; a source's order depends on its name, not on its place.

    Source: the greedy rule of Adler et al., "A proportionate fair scheduling rule with good worst-case performance",
    SPAA 2003.  Why the bound holds: let a_k be the largest mean deficit of any k sources.  If the drawn source is among
    the k largest, a_k did not grow; if not, it stood above them and a_k <= a_{k+1} + 1/(k+1); and a_S = 0.
    """

    def __init__(self, sizes: Sequence[int], seed: int, names: Sequence[str]):
        if not len(sizes) == len(names) == len(set(names)) or not names or min(sizes) < 1:
            raise ValueError(f"Mixture: sizes {list(sizes)} for names {list(names)}; give each name, once, a size >= 1")
        self.names = tuple(names)
        self.sizes = tuple(int(size) for size in sizes)
        self._seed = seed
        self._cursors = [0] * len(names)
        self._deficits = np.zeros(len(names))
        self._draws = 0

    def draw(self, batch_size: int, weights: ArrayLike) -> Draw:
        """Draw the next global batch; a new weight acts on it at once.

        Args:
            batch_size: B over all ranks.
            weights: (S,) non-negative, summing to 1 within 1e-6.

        Raises:
            ValueError: the weights are not that, or batch_size < 1; nothing is drawn then.
        """
        share = self._checked(weights)
        if batch_size < 1:
            raise ValueError(f"Mixture.draw: batch_size is {batch_size}; it must be at least 1")
        first = sum(self._cursors)  # samples drawn before
        sample = np.arange(first, first + batch_size, dtype=np.int64)
        source = np.empty(batch_size, dtype=np.int64)
        for place in range(batch_size):
            self._deficits += share
            chosen = int(self._deficits.argmax())
            self._deficits[chosen] -= 1
            source[place] = chosen
        index = np.empty(batch_size, dtype=np.int64)
        for number in range(len(self.names)):
            mine = source == number
            index[mine] = self._next_windows(number, int(mine.sum()))
        drawn = Draw(self._draws, source, index, sample)
        self._draws += 1
        return drawn

    @property
    def epochs(self) -> NDArray[np.float64]:
        """(S,) float64: how many times each source has been gone through."""
        return np.array(self._cursors, dtype=np.float64) / np.array(self.sizes)

    def state_dict(self) -> dict[str, Any]:
        """All that resumes, in JSON's types; `json` writes floats so that they come back to the last bit."""
        return {
            "cursors": dict(zip(self.names, self._cursors, strict=True)),
            "deficits": dict(zip(self.names, self._deficits.tolist(), strict=True)),
            "draws": self._draws,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken.

        Raises:
            ValueError: it belongs to other sources.
        """
        if not set(state["cursors"]) == set(state["deficits"]) == set(self.names):
            raise ValueError(f"Mixture: the state is of sources {list(state['cursors'])}, not {list(self.names)}")
        self._cursors = [int(state["cursors"][name]) for name in self.names]
        self._deficits = np.array([state["deficits"][name] for name in self.names], dtype=np.float64)
        self._draws = int(state["draws"])

    def _checked(self, weights: ArrayLike) -> NDArray[np.float64]:
        share = np.asarray(weights, dtype=np.float64)
        if share.shape != (len(self.names),):
            raise ValueError(f"Mixture.draw: weights are {share.shape}; there are {len(self.names)} sources")
        # Written so that NaN fails too.
        if not (share.min() >= 0 and abs(share.sum() - 1) <= 1e-6):
            raise ValueError(f"Mixture.draw: weights {share.tolist()} must be non-negative and sum to 1")
        # Exactly 1 from here on: an error of 1e-6 a sample would add up to whole windows.
        return share / share.sum()

    def _next_windows(self, number: int, count: int) -> Int64:
        """The next `count` windows of a source, moving its cursor."""
        name, size, first = self.names[number], self.sizes[number], self._cursors[number]
        self._cursors[number] += count
        ordinal = np.arange(first, first + count, dtype=np.int64)
        index = np.empty(count, dtype=np.int64)
        epochs = ordinal // size
        for epoch in np.unique(epochs):
            mine = epochs == epoch
            index[mine] = permuted(ordinal[mine] % size, size, derive(self._seed, "window order", name, int(epoch)))
        return index
