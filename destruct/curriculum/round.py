"""A round after the frozen model was renewed: estimate difficulty with it, let the strategy move the weights."""

import numpy as np
import torch

from destruct.batch import TokenWindows
from destruct.curriculum.estimates import Estimates, ProgressEstimator
from destruct.curriculum.panels import PanelLosses, panel_items
from destruct.curriculum.strategies import Strategy
from destruct.engine.base import FrozenEngine
from destruct.engine.topology import Topology
from destruct.evaluation import window_nats


class Curriculum:
    """The rolling estimate of each source's difficulty and the strategy that reads it.

    Raises ValueError where a held-out window predicts nothing: an item of a panel is a mean loss, and it has none.
    """

    def __init__(self, estimator: ProgressEstimator, strategy: Strategy, held_out: list[TokenWindows], panel_size: int):
        for source, windows in enumerate(held_out):
            if not windows.target_counts.all():
                empty = int((windows.target_counts == 0).nonzero()[0])
                raise ValueError(f"Curriculum.held_out[{source}]: nothing is predicted in window {empty}")
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
    frozen: FrozenEngine, held_out: list[TokenWindows], round_index: int, panel_size: int, topology: Topology
) -> list[PanelLosses]:
    """Score this round's panel of each source with the frozen model.

    Args:
        held_out: of each source, equal on every rank; something is predicted in each window.
        panel_size: windows per source; all of a source that has fewer.
    """
    panels = []
    for windows in held_out:
        items = panel_items(round_index, panel_size, len(windows))
        panel = windows.select(torch.from_numpy(items))
        tokens = panel.target_counts.cpu().numpy()
        nats = window_nats(frozen, panel, topology).cpu().numpy()
        panels.append(PanelLosses(items, nats / tokens, tokens, population=len(windows)))
    return panels
