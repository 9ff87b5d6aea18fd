"""Which window comes next: live weights, exact resume, and one order at any world size.

The draw is global (the caller slices it by rank) and its whole state is a few numbers per source.
"""

import math
import operator
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from destruct.data.order import Order
from destruct.data.shares import shares_of_the_live

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]

AHEAD = 1024
"""Windows of a source whose places and sizes are looked up at once."""


class OutOfData(Exception):
    """No further batch can be drawn: a source that ends the run is exhausted, or every source is."""

    def __init__(self, names: Sequence[str]):
        super().__init__(names)
        self.names = list(names)


@dataclass(frozen=True, slots=True)
class Draw:
    """One global batch of B windows, by address."""

    number: int
    """How many draws came before it in the run."""
    source: Int64
    """(B,) int64: index of the source, in the order of the mixture."""
    index: Int64
    """(B,) int64: window of that source."""
    ordinal: Int64
    """(B,) int64: how many windows of that source came before it in the run."""
    sample: Int64
    """(B,) int64: global sample index, a running count over all draws."""

    def __post_init__(self) -> None:
        for name in ("index", "ordinal", "sample"):
            got, want = getattr(self, name).shape, self.source.shape
            if got != want or len(want) != 1:
                raise ValueError(f"Draw.{name} is {got}; source is {want}, which must be (B,)")


class Mixture:
    """Draws windows from S sources by largest deficit against whatever weights it is given; shares are of tokens.

        for each sample:  k = argmax(deficit + w), the first of equals;  deficit += s w;  deficit[k] -= s,

    s being the size of the next window of k in whole windows, 0 < s <= 1.  A source is never a whole window ahead of
    its accumulated weights, and behind by at most sum of 1/i for i = 2..S, however the weights move.

    A source whose order ends is left out from its last window on, and its weight falls to the others in proportion.
    What it was owed goes to those that are ahead, what it was ahead by to those that are behind, in proportion: nobody
    comes further from 0, so the bounds hold on.  A source that is gone at a resume leaves in the same way, and a new
    one comes with nothing owed; S is the most sources that there were at once, those that ended included.

    Args:
        orders: of the sources, in the order of every weight vector, in which ties are decided too: a run gives them in
            the order of their names, so that the order of its config never matters.
        ends_the_run: names of the sources after whose end nothing more is drawn.

    Source: the greedy rule of Adler et al., "A proportionate fair scheduling rule with good worst-case performance",
    SPAA 2003, there for s = 1.  Why the bounds hold: let a_k be the largest mean deficit of any k sources.  If the
    drawn source is among the k largest, a_k did not grow; if not, it stood above them and a_k <= a_{k+1} + 1/(k+1);
    and a_S = 0, so a_k <= H_S - H_k, H_k being the sum of 1/i for i = 1..k.  With s < 1 the step ends on the line
    between where it began and where s = 1 would have led, and the deficits within these bounds are a convex set.  Where
    a source leaves, positive deficits fall and negative ones rise, none past 0, so that no a_k grows; its place stays
    at 0 and is never drawn, as the largest of deficit + w is above 0, until a new source takes it.  A place more than
    there ever were adds a 0: with p deficits above 0 the sum of the k largest is what it was for k <= p and that of
    the k - 1 largest for k > p, and (k - 1) (H_S - H_{k-1}) <= k (H_{S+1} - H_k), term by term: x / (x + i) grows
    with x.
    """

    def __init__(self, orders: Sequence[Order], ends_the_run: Collection[str] = ()):
        self.names = tuple(order.name for order in orders)
        if not orders or len(set(self.names)) < len(self.names):
            raise ValueError(f"Mixture: the sources are {list(self.names)}; give at least one, each of its own name")
        self._orders = tuple(orders)
        self._ends_the_run = [name in ends_the_run for name in self.names]
        self._deficits = [0.0] * len(orders)
        self._draws, self._samples = 0, 0
        self._upcoming = [_Upcoming(order) for order in orders]
        self._live = self._not_exhausted()
        self._all_live, self._some_live = bool(self._live.all()), bool(self._live.any())

    def draw(self, batch_size: int, weights: ArrayLike) -> Draw:
        """Draw the next global batch; a new weight acts on it at once.

        Args:
            batch_size: B over all ranks.
            weights: (S,) non-negative, summing to 1 within 1e-6.

        Raises:
            ValueError: the weights are not that, or batch_size < 1; nothing is drawn then.
            OutOfData: there is not a whole batch left, or a source that ends the run is exhausted; nothing is drawn.
        """
        share = self._checked(weights)
        if batch_size < 1:
            raise ValueError(f"Mixture.draw: batch_size is {batch_size}; it must be at least 1")
        ended = [name for name, ends, live in zip(self.names, self._ends_the_run, self._live, strict=True)
                 if ends and not live]  # fmt: skip
        if ended:
            raise OutOfData(ended)
        before, first = self.state_dict(), self._samples
        chosen = []
        live_share = self._share_of_the_live(share).tolist()
        for _ in range(batch_size):
            if not self._some_live:
                self.load_state_dict(before)
                raise OutOfData(self.names)
            place, exhausted = self._choose(live_share)
            chosen.append(place)
            if exhausted:
                live_share = self._share_of_the_live(share).tolist()
        source, index, ordinal = np.array(chosen, dtype=np.int64).T
        drawn = Draw(self._draws, source, index, ordinal, np.arange(first, first + batch_size, dtype=np.int64))
        self._draws, self._samples = self._draws + 1, first + batch_size
        return drawn

    def afresh(self) -> "Mixture":
        """A mixture of the same sources that has drawn nothing."""
        ends = [name for name, ends in zip(self.names, self._ends_the_run, strict=True) if ends]
        return Mixture(self._orders, ends)

    def require(self, batch_size: int) -> None:
        """Raise OutOfData where `draw` would, whatever the weights; nothing is drawn."""
        before = self.state_dict()
        self.draw(batch_size, np.full(len(self.names), 1 / len(self.names)))
        self.load_state_dict(before)

    def shares(self, weights: ArrayLike) -> Float64:
        """The weights (S,) by which the next window is drawn: those of the sources that are not exhausted."""
        return self._share_of_the_live(self._checked(weights))

    @property
    def drawn(self) -> list[int]:
        """Windows drawn of each source so far."""
        return [upcoming.cursor for upcoming in self._upcoming]

    @property
    def epochs(self) -> Float64:
        """(S,) float64: how many times each source has been gone through."""
        return np.array([order.epochs(drawn) for order, drawn in zip(self._orders, self.drawn, strict=True)])

    @property
    def exhausted(self) -> list[str]:
        """Sources that have no further window."""
        return [name for name, live in zip(self.names, self._live, strict=True) if not live]

    def state_dict(self) -> dict[str, Any]:
        """All that resumes, in JSON's types; `json` writes floats so that they come back to the last bit."""
        return {
            "cursors": dict(zip(self.names, self.drawn, strict=True)),
            "deficits": dict(zip(self.names, self._deficits, strict=True)),
            "draws": self._draws,
            "samples": self._samples,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken, be it by other sources too: what it says goes by their names.

        A source that is new, or comes back, begins with its first window and nothing owed.  What was owed to those that
        are gone, or have no window left, goes to the others as when a source ends.

        Raises:
            ValueError: none of its sources is here, or it has not a cursor and a deficit of each.
        """
        cursors, deficits = state["cursors"], state["deficits"]
        if set(cursors) != set(deficits) or not set(cursors) & set(self.names):
            raise ValueError(f"Mixture: the state is of sources {list(cursors)}, not {list(self.names)}")
        for name, upcoming in zip(self.names, self._upcoming, strict=True):
            upcoming.move(int(cursors.get(name, 0)))
        self._draws, self._samples = int(state["draws"]), int(state["samples"])
        self._live = self._not_exhausted()
        here = {name for name, live in zip(self.names, self._live, strict=True) if live}
        owed = sum(float(deficit) for name, deficit in deficits.items() if name not in here)
        self._deficits = _spread(owed, [float(deficits.get(name, 0.0)) if name in here else 0.0 for name in self.names])
        self._all_live, self._some_live = bool(self._live.all()), bool(self._live.any())

    def _choose(self, share: list[float]) -> tuple[tuple[int, int, int], bool]:
        """The next sample's (source, window, ordinal), and whether that source has none after it."""
        # Numbers of Python's own: of so few sources an array operation costs more than the arithmetic.
        owed, wanted = self._deficits, list(map(operator.add, self._deficits, share))
        live = wanted if self._all_live else list(map(_if_live, wanted, self._live))
        chosen = live.index(max(live))
        upcoming = self._upcoming[chosen]
        ordinal = upcoming.cursor
        index, size = upcoming.take()
        if size < 1:
            wanted = [before + size * weight for before, weight in zip(owed, share, strict=True)]
        self._deficits = wanted
        self._deficits[chosen] -= size
        exhausted = not upcoming.more()
        if exhausted:
            self._retire(chosen)
        return (chosen, index, ordinal), exhausted

    def _retire(self, source: int) -> None:
        """Leave an exhausted source out; the deficits of the others sum to 0 again."""
        self._live[source] = False
        self._all_live, self._some_live = False, bool(self._live.any())
        owed, self._deficits[source] = self._deficits[source], 0.0
        self._deficits = _spread(owed, self._deficits)

    def _not_exhausted(self) -> NDArray[np.bool_]:
        return np.array([upcoming.more() for upcoming in self._upcoming])

    def _share_of_the_live(self, share: Float64) -> Float64:
        return shares_of_the_live(share, self._live)

    def _checked(self, weights: ArrayLike) -> Float64:
        share = np.asarray(weights, dtype=np.float64)
        if share.shape != (len(self.names),):
            raise ValueError(f"Mixture.draw: weights are {share.shape}; there are {len(self.names)} sources")
        # Written so that NaN fails too.
        if not (share.min() >= 0 and abs(share.sum() - 1) <= 1e-6):
            raise ValueError(f"Mixture.draw: weights {share.tolist()} must be non-negative and sum to 1")
        # Exactly 1 from here on: an error of 1e-6 a sample would add up to whole windows.
        return share / share.sum()


def _spread(owed: float, deficits: list[float]) -> list[float]:
    """Deficits that sum to 0 when those of `owed` in all have left: it goes to those of the other sign, in proportion.

    Args:
        deficits: (S,) of the others; with `owed` they sum to 0.
    """
    opposite = [each if each * owed < 0 else 0.0 for each in deficits]
    total = sum(opposite)  # as much as is owed, or more
    if not total:
        return deficits
    return [each + owed * part / total for each, part in zip(deficits, opposite, strict=True)]


def _if_live(wanted: float, live: bool) -> float:
    return wanted if live else -math.inf


class _Upcoming:
    """The next windows of one source, looked up some at a time."""

    def __init__(self, order: Order):
        self._order = order
        self.move(0)

    def move(self, cursor: int) -> None:
        """Stand before the window of this ordinal."""
        self.cursor = cursor
        self._first = cursor
        self._index: list[int] = []
        self._sizes: list[float] = []

    def more(self) -> bool:
        """Whether there is a next window."""
        if self.cursor < self._first + len(self._index):
            return True
        index = self._order.windows(self.cursor, AHEAD)
        self._first, self._index, self._sizes = self.cursor, index.tolist(), self._order.sizes(index).tolist()
        return bool(self._index)

    def take(self) -> tuple[int, float]:
        """The next window and its size, moving on; `more` has said that there is one."""
        place = self.cursor - self._first
        self.cursor += 1
        return self._index[place], self._sizes[place]
