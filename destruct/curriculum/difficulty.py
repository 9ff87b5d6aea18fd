"""Difficulty of each source: losses of the frozen model on rotating panels of held-out windows."""

import numpy as np
import torch
from torch import Tensor

from destruct.curriculum.estimates import PanelLosses, panel_items
from destruct.engine.base import FrozenEngine
from destruct.engine.topology import Topology
from destruct.evaluation import window_nats


def measure_panels(
    frozen: FrozenEngine, held_out: list[Tensor], round_index: int, panel_size: int, topology: Topology
) -> list[PanelLosses]:
    """Score this round's panel of each source with the frozen model.

    Args:
        held_out: per source (n_k, T) int64 held-out windows, equal on every rank.
        panel_size: windows per source; all of a source that has fewer.
    """
    panels = []
    for windows in held_out:
        items = panel_items(round_index, panel_size, len(windows))
        tokens = np.full(len(items), windows.shape[1] - 1, dtype=np.int64)
        nats = window_nats(frozen, windows[torch.from_numpy(items)], topology).cpu().numpy()
        panels.append(PanelLosses(items, nats / tokens, tokens, population=len(windows)))
    return panels
