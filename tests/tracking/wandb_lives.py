"""Lives of a run that W&B is told of."""

import math
from pathlib import Path

from destruct.config.wandb import WandbConfig
from destruct.ppo.histograms import Histogram
from destruct.tracking.weights_and_biases import WeightsAndBiases
from tests.tracking.test_sinks import FACTS, SAMPLE

OFFLINE = WandbConfig(mode="offline")
KEY = "0123456789abcdef" * 4
"""As long as one of W&B's."""


def opened(folder: Path, said: list[str], config: WandbConfig = OFFLINE, mode: str = "offline") -> WeightsAndBiases:
    return WeightsAndBiases(folder, config, mode, FACTS, said.append)


def a_life(folder: Path, said: list[str], updates: range, value: float) -> WeightsAndBiases:
    tracking = opened(folder, said)
    for step in updates:
        tracking.scalars("ppo", step, {"curriculum/round": value})
        tracking.scalars("ppo", step, {"ppo/steps": value, "kl/coef": math.nan})
        tracking.histogram("ppo/ratio", step, Histogram((0.5, 1.0, 2.0), (3, 4)))
        tracking.samples(step, [SAMPLE])
    return tracking
