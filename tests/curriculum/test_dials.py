"""From the config to dials: shares become absolute, null becomes never, and each strategy has its usual signal."""

import math

import numpy as np
import pytest

from destruct.config.curriculum import CurriculumConfig
from destruct.curriculum.dials import dials_from, strategy_from


def test_a_floor_is_a_share_of_the_equal_weight_and_null_is_never():
    """0.2 of the equal weight of 5 sources is 0.04."""
    dials = dials_from(CurriculumConfig(floor=0.2, repetition_epochs=None, exploration_rounds=None), 5)
    assert dials.floor == pytest.approx(0.04, rel=1e-15)
    assert (dials.rules.repetition_epochs, dials.rules.exploration_rounds) == (math.inf, math.inf)


@pytest.mark.parametrize(
    ("strategy", "named", "signal"),
    [
        ("second_order", None, "progress"),
        ("literal", None, "metric"),
        ("literal", "progress", "progress"),
        ("second_order", "advantage", "advantage"),
    ],
)
def test_the_signal_is_the_one_that_is_named_or_the_strategys_usual_one(strategy, named, signal):
    assert dials_from(CurriculumConfig(strategy=strategy, signal=named), 2).signal == signal


def test_sizes_reach_the_strategy():
    """Square roots of 1 and 9 are 1 to 3."""
    by_size = strategy_from(
        CurriculumConfig(strategy="temperature", temperature=2.0), {"a": 0.5, "b": 0.5}, np.array([1.0, 9.0])
    )
    assert by_size.weights() == pytest.approx([0.25, 0.75], rel=1e-12)
