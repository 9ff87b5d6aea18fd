"""A round after the frozen model was renewed: estimate difficulty with it, let the strategy move the weights."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from destruct.batch import TokenWindows
from destruct.curriculum.estimates import Estimates, ProgressEstimator
from destruct.curriculum.panels import PanelLosses, panel_items
from destruct.curriculum.strategies import Strategy
from destruct.engine.base import FrozenEngine
from destruct.engine.topology import Topology
from destruct.evaluation import window_nats


class HeldOut(Protocol):
    """A source's held-out windows, of which the first n are a sample; none is read before it is asked for."""

    def __len__(self) -> int: ...

    def select(self, rows: Tensor) -> TokenWindows:
        """The windows at `rows` (n,) int64."""


class Curriculum:
    """The rolling estimate of each source's difficulty and the strategy that reads it."""

    def __init__(self, estimator: ProgressEstimator, strategy: Strategy, held_out: Sequence[HeldOut], panel_size: int):
        self.estimator = estimator
        self.strategy = strategy
        self.held_out = held_out
        self.panel_size = panel_size
        self.significant = np.zeros(len(held_out), dtype=np.int64)  # rounds with progress beyond two standard errors

    @property
    def rounds(self) -> int:
        """Rounds made so far."""
        return self.estimator.rounds

    @property
    def weights(self) -> np.ndarray:
        """Sampling weights (S,) float64, on the simplex."""
        return self.strategy.weights()

    def round(self, frozen: FrozenEngine, topology: Topology) -> Estimates:
        """Estimate, reweigh.  All ranks call it and end with the same weights.

        Args:
            frozen: refreshed from the policy just now.
        """
        panels = measure_panels(frozen, self.held_out, self.rounds, self.panel_size, topology)
        estimates = self.estimator.observe(panels)
        self.strategy.observe(estimates)
        self.significant += estimates.progress > 2 * estimates.progress_se
        return estimates

    def state_dict(self) -> dict:
        """Everything that a resumed run needs, as JSON."""
        return {
            "significant": self.significant.tolist(),
            "estimator": self.estimator.state_dict(),
            "strategy": self.strategy.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Take over what `state_dict` gave."""
        self.significant = np.array(state["significant"], dtype=np.int64)
        self.estimator.load_state_dict(state["estimator"])
        self.strategy.load_state_dict(state["strategy"])


def measure_panels(
    frozen: FrozenEngine, held_out: Sequence[HeldOut], round_index: int, panel_size: int, topology: Topology
) -> list[PanelLosses]:
    """Score this round's panel of each source with the frozen model.

    Args:
        held_out: of each source, equal on every rank.
        panel_size: windows per source; all of a source that has fewer.

    Raises:
        ValueError: nothing is predicted in a window: an item of a panel is a mean loss, and it has none.
    """
    panels = []
    for windows in held_out:
        items = panel_items(round_index, panel_size, len(windows))
        panel = windows.select(torch.from_numpy(items))
        tokens = panel.target_counts.cpu().numpy()
        nats = window_nats(frozen, panel, topology).cpu().numpy()
        panels.append(PanelLosses(items, nats / tokens.clip(1), tokens, population=len(windows)))
    return panels
