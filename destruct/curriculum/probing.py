"""Scoring held-out windows with the frozen model, as many as the budget allows."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from destruct.batch import TokenWindows
from destruct.curriculum.compression import COMPRESSED_WINDOWS, compressed_nats
from destruct.curriculum.panels import PanelLosses, panel_items
from destruct.engine.base import FrozenEngine
from destruct.engine.topology import Topology
from destruct.evaluation import window_nats


class Windows(Protocol):
    """A source's windows, of which any in a row are a sample; none is read before it is asked for."""

    def __len__(self) -> int: ...

    def select(self, rows: Tensor) -> TokenWindows:
        """The windows at `rows` (n,) int64."""


class Prober:
    """Measures panels, and counts what they cost.

    Args:
        token_bytes: (V,) bytes of each token, where losses are to be bits per byte; None for nats per token.
    """

    def __init__(self, token_bytes: NDArray[np.int64] | None = None):
        self.token_bytes = token_bytes
        self.tokens = 0  # that the frozen model was run on so far

    def measure(self, frozen: FrozenEngine, windows: Windows, start: int, size: int, topology: Topology) -> PanelLosses:
        """Score the panel of `size` windows from `start` on; all of a source that has fewer.

        Args:
            windows: equal on every rank.

        Raises:
            ValueError: nothing is predicted in a window: an item of a panel is a mean loss, and it has none.
        """
        items = panel_items(start, size, len(windows))
        panel = windows.select(torch.from_numpy(items))
        self.tokens += panel.tokens.numel()
        sizes = panel.target_counts.cpu().numpy()
        losses = window_nats(frozen, panel, topology).cpu().numpy()
        if self.token_bytes is not None:
            counted = np.zeros(panel.predicted.shape, dtype=np.int64)
            counted[panel.predicted.cpu().numpy()] = self.token_bytes[panel.targets.cpu().numpy()]
            sizes, losses = counted.sum(1), losses / np.log(2)
        return PanelLosses(items, losses / sizes.clip(1), sizes, population=len(windows))

    def compressed(self, windows: Windows) -> float:
        """What LZMA takes for the first windows, in the unit of the losses; see `compressed_nats`."""
        count = min(COMPRESSED_WINDOWS, len(windows))
        tokens = windows.select(torch.arange(count)).tokens.cpu().numpy()
        nats = compressed_nats(tokens)
        return nats / tokens.size if self.token_bytes is None else nats / np.log(2) / self.token_bytes[tokens].sum()


def per_item_tokens(panels: Sequence[Windows]) -> int:
    """Tokens of one window of each."""
    first = torch.zeros(1, dtype=torch.int64)
    return sum(windows.select(first).tokens.numel() for windows in panels)
