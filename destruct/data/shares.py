"""What is left of sampling weights where sources have ended."""

import numpy as np
from numpy.typing import NDArray


def shares_of_the_live(shares: NDArray[np.float64], live: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The weights (S,) of the sources that still have windows, equal ones where none of them has any weight.

    Args:
        shares: (S,) of all sources, none negative, summing to 1.
        live: (S,) False where a source is exhausted; all 0 is the answer where every one is.
    """
    if live.all():
        return shares
    left = np.where(live, shares, 0.0)
    return (left if left.sum() else live.astype(np.float64)) / (left.sum() or max(1, live.sum()))
