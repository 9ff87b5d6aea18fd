"""What the loop itself decides: the KL constraint, and the summary's means."""

import math

import pytest

from destruct.checkpoint.state import TrainState
from destruct.config.ppo import KLConfig
from destruct.loop import constrain
from destruct.recording import mean_over_sources


def test_a_breach_counts_raises_beta_once_and_is_said():
    """Bound 0.2: 0.1 and 0.2 hold, 0.3 breaches; beta 0.1 becomes 0.15 for the next update."""
    state, said = TrainState(kl_coef=0.1), []
    constraint = KLConfig(bound=0.2, breach_factor=1.5)
    betas = [constrain(state, kl, constraint, said.append) for kl in (0.1, 0.2, 0.3, 0.05)]
    assert betas == pytest.approx([0.1, 0.1, 0.1, 0.15])
    assert (state.breaches, state.kl_max) == (1, 0.3)
    assert state.kl_coef == pytest.approx(0.15)
    assert len(said) == 1 and "0.3000" in said[0]


@pytest.mark.parametrize("kl", [math.nan, math.inf])
def test_a_kl_that_is_not_a_number_is_a_breach(kl):
    state = TrainState(kl_coef=0.1)
    for value in (kl, 0.1):
        constrain(state, value, KLConfig(bound=0.2, breach_factor=2.0), lambda line: None)
    assert state.breaches == 1
    assert state.kl_max == math.inf, "and stays the largest"


def test_the_reward_is_averaged_per_source_first_and_a_source_that_was_not_drawn_is_left_out():
    """Source a: (1 + 3) / (1 + 3) = 1; source b: 8 / 2 = 4; source c: nothing.  (1 + 4) / 2."""
    updates = [[[1.0, 1], [8.0, 2], [0.0, 0]], [[3.0, 3], [0.0, 0], [0.0, 0]]]
    assert mean_over_sources(updates) == 2.5
