"""What the loop itself decides: the KL constraint, and the summary's means."""

import math
from types import SimpleNamespace

import pytest

from destruct.checkpoint.state import TrainState
from destruct.loop import constrain
from destruct.recording import mean_over_sources


def run_with(bound: float, factor: float) -> SimpleNamespace:
    """The part of a run that `constrain` touches."""
    kl = SimpleNamespace(bound=bound, breach_factor=factor)
    said: list[str] = []
    screen = SimpleNamespace(say=said.append)
    return SimpleNamespace(state=TrainState(kl_coef=0.1), config=SimpleNamespace(kl=kl), screen=screen, said=said)


def test_a_breach_counts_raises_beta_once_and_is_said():
    """Bound 0.2: 0.1 and 0.2 hold, 0.3 breaches; beta 0.1 becomes 0.15 for the next update."""
    run = run_with(bound=0.2, factor=1.5)
    assert [constrain(run, kl) for kl in (0.1, 0.2, 0.3, 0.05)] == pytest.approx([0.1, 0.1, 0.1, 0.15])
    assert (run.state.breaches, run.state.kl_max) == (1, 0.3)
    assert run.state.kl_coef == pytest.approx(0.15)
    assert len(run.said) == 1 and "0.3000" in run.said[0]


@pytest.mark.parametrize("kl", [math.nan, math.inf])
def test_a_kl_that_is_not_a_number_is_a_breach(kl):
    run = run_with(bound=0.2, factor=2.0)
    constrain(run, kl)
    constrain(run, 0.1)
    assert run.state.breaches == 1
    assert run.state.kl_max == math.inf, "and stays the largest"


def test_the_reward_is_averaged_per_source_first_and_a_source_that_was_not_drawn_is_left_out():
    """Source a: (1 + 3) / (1 + 3) = 1; source b: 8 / 2 = 4; source c: nothing.  (1 + 4) / 2."""
    updates = [[[1.0, 1], [8.0, 2], [0.0, 0]], [[3.0, 3], [0.0, 0], [0.0, 0]]]
    assert mean_over_sources(updates) == 2.5
