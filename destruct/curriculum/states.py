"""The state of a strategy as plain data, and how it is laid out anew where sources came or went.

A state is {"shares": {name: list}, "figures": {name: list}, "levels": {name: list}, "history": list, "counts": {name:
number}}, a list having one number per source: shares sum to 1; figures begin anew with a source; of levels only the
differences between sources count; history is of all sources together.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from destruct.curriculum.estimates import Floats
from destruct.errors import DestructError

State = dict[str, Any]


def per_source(state: State, size: int, keys: Sequence[tuple[str, str]]) -> list[Floats]:
    """The arrays (S,) at (kind, name) of a state.

    Args:
        size: S.

    Raises:
        DestructError: one is missing or of another length: another strategy's state, or other sources'.
    """
    arrays = [np.array(state.get(kind, {}).get(name, ()), dtype=np.float64) for kind, name in keys]
    for (_, name), array in zip(keys, arrays, strict=True):
        if array.shape != (size,):
            raise DestructError(
                f"the checkpoint's curriculum has {array.size} {name}; this run has {size} sources",
                remedy="resume with the strategy of the checkpoint, or start a new run",
            )
    return arrays


def laid_out_anew(state: State, fresh: State, places: Sequence[int | None]) -> State:
    """The state for this run's sources: a new one starts with its share of `fresh`, the others divide the rest as they
    did.

    Args:
        state: of a run with other sources.
        fresh: of the same strategy for this run's sources, before any round.
        places: of each source of this run, where it stands in `state`; None for a new one, but not for all.
    """
    old = [place for place in places if place is not None]
    is_new = np.array([place is None for place in places])
    anew: State = {"history": [], "counts": state["counts"], "shares": {}, "figures": {}, "levels": {}}
    for kind in ("shares", "figures", "levels"):
        for name, begun in fresh[kind].items():
            kept = np.array(state[kind][name], dtype=np.float64)[old]
            array = np.array(begun, dtype=np.float64)
            if kind == "shares" and (is_new.any() or len(old) < len(state[kind][name])):
                kept = (kept if kept.sum() > 0 else np.ones_like(kept)) / (kept.sum() or kept.size)
                kept = kept * (1 - array[is_new].sum())
            if kind == "levels":
                array[is_new] = np.mean(kept)
            array[~is_new] = kept
            anew[kind][name] = array.tolist()
    return anew
