"""The curriculum as it is built now, behind the calls that `bench/curriculum_run.py` makes."""

from collections.abc import Sequence

import numpy as np
import torch

from destruct.config.curriculum import CurriculumConfig
from destruct.curriculum.estimates import Estimates, ProgressEstimator
from destruct.curriculum.round import Curriculum, HeldOut
from destruct.curriculum.strategies import DynamicsSettings, Strategy, make_strategy
from destruct.engine.base import FrozenEngine
from destruct.engine.topology import Topology


def make_curriculum(
    config: CurriculumConfig,
    prior: dict[str, float],
    held_out: Sequence[HeldOut],
    training: Sequence[HeldOut],
    token_bytes: np.ndarray | None,
    sizes: Sequence[int] | None,
) -> "CountedCurriculum":
    """A curriculum of these sources; `training`, `token_bytes` and `sizes` are not read."""
    shares = np.array(list(prior.values()))
    dynamics = DynamicsSettings(
        config.eta, config.mu, config.lam, config.floor / len(shares), config.z, config.signal, config.projection
    )
    estimator = ProgressEstimator(len(shares), config.kappa)
    strategy = make_strategy(config.strategy, shares, dynamics)
    return CountedCurriculum(Curriculum(estimator, strategy, held_out, config.difficulty_sample_size))


class Explained:
    """A strategy that gives no reasons."""

    def __init__(self, strategy: Strategy):
        self._strategy = strategy

    @property
    def target(self) -> np.ndarray:
        """(S,) float64 mixture that the last estimates argue for."""
        return self._strategy.target

    def reasons(self) -> list[str]:
        """(S,) empty texts."""
        return [""] * len(self.target)


class CountedCurriculum:
    """A curriculum that counts the tokens which its rounds score."""

    def __init__(self, curriculum: Curriculum):
        self._curriculum = curriculum
        self.strategy = Explained(curriculum.strategy)
        self.probe_tokens = 0

    @property
    def weights(self) -> np.ndarray:
        """(S,) float64 shares of the tokens to draw."""
        return self._curriculum.weights

    def count(self, tokens: np.ndarray, passes: float = 1.0) -> None:
        """Nothing of what was drawn is read."""

    def round(self, frozen: FrozenEngine, topology: Topology, epochs: np.ndarray, exhausted: np.ndarray) -> Estimates:
        """Estimate and reweigh; of its arguments only the first two are read."""
        for windows in self._curriculum.held_out:
            window = windows.select(torch.zeros(1, dtype=torch.int64)).tokens.numel()
            self.probe_tokens += min(self._curriculum.panel_size, len(windows)) * window
        return self._curriculum.round(frozen, topology)
