"""Sources on a plateau: what a compressor tells of them, and what they are given for it."""

import math

import numpy as np
import pytest

from destruct.curriculum.target import next_idle
from destruct.curriculum.weight_dynamics import WeightDynamics
from tests.curriculum.rounds import dials_of, estimates_for, estimates_of, target

PLATEAUS = {
    "compressed": [2.979, 2.981, 3.5, math.nan, 2.0, 2.0, 2.0],
    "gap_growth": [0, 0, 0, 0, 0.03, math.nan, 0],
    "gap_growth_se": [0, 0, 0, 0, 0.01, math.inf, 0],
    "exhausted": [0, 0, 0, 0, 0, 0, 1],
}
"""Difficulty 3 +- .01: above 2.979 by more than two errors, not above 2.981 or above what nobody measured; what is
learnt by heart, or may be, or is exhausted, has no more to teach."""


def test_what_a_compressor_takes_tells_a_plateau_from_the_end():
    """All are drawn by their priors; of six live ones progress of one error claims a seventh of what may be claimed."""
    prior, idle, longer = np.full(7, 1 / 7), np.full(7, 3.0), 2.7 + 1 / 7
    for counts in (True, False):
        got = target(prior, np.array([0, 0, 0.01, 0, 0, 0, 0]), rules={"plateaus": counts}, **PLATEAUS)
        after = next_idle(idle, got, estimates_of(tokens=[1.0] * 7), prior)
        np.testing.assert_allclose(after, [0 if counts else longer] + [longer] * 5 + [3], rtol=1e-14)
        assert got.unfinished.tolist() == [counts] + [False] * 6


@pytest.mark.parametrize(("progress", "held"), [(0.0, True), (0.02, True), (0.021, False), (-0.3, True)])
def test_a_source_on_its_plateau_keeps_its_prior_and_one_that_rises_does_not_need_it(progress, held):
    """Two errors of progress are certain. What the five other live ones have shrinks alike."""
    prior, p = np.full(7, 1 / 7), np.array([progress, 9.0, 0, 0, 0, 0, 0])
    got = target(prior, p, 0.01, **PLATEAUS)
    free = target(prior, p, 0.01, **PLATEAUS | {"compressed": math.nan})
    assert free.weights[0] < 1 / 7 and got.weights.sum() == pytest.approx(1, rel=1e-14)
    assert got.held.tolist() == [held] + [False] * 6 and not free.held.any()
    if held:
        assert got.weights[0] == 1 / 7
        shrunk = 5 / 7 / (6 / 7 - free.weights[0])
        np.testing.assert_allclose(got.weights[1:] / free.weights[1:], [shrunk] * 5 + [1], rtol=1e-13)
    else:
        np.testing.assert_array_equal(got.weights, free.weights)


def test_no_source_on_a_plateau_pays_for_another_one():
    """Priors .3, .3 and .4; exploration alone would give the second one more than .4. With all three on a plateau none
    can give; with the first two the third one does."""
    prior, idle, rules = np.array([0.3, 0.3, 0.4]), np.array([9.0, 0.0, 9.0]), {"exploration_rounds": 1.0}
    assert target(prior, idle=idle, rules=rules).weights[1] > 0.4
    all_held = target(prior, idle=idle, rules=rules, compressed=2.0).weights
    np.testing.assert_allclose(all_held, prior, rtol=1e-14)
    two_held = target(prior, idle=idle, rules=rules, compressed=[2.0, 2.0, math.nan]).weights
    assert two_held[0] == 0.3 and two_held[1] > 0.3 and two_held.sum() == pytest.approx(1, rel=1e-14)


@pytest.mark.parametrize("prior", [[0.4, 0.3, 0.2, 0.1], [0.7, 0.2, 0.1], [1 / 45] * 45, [0.3333334] * 3])
def test_sources_that_are_all_on_a_plateau_share_by_their_priors_also_where_those_sum_to_a_rounding_more_than_1(prior):
    prior = np.array(prior)
    got = target(prior, compressed=2.0).weights
    np.testing.assert_allclose(got, prior / prior.sum(), rtol=1e-6)


def test_a_plateau_takes_nothing_from_what_is_not_known():
    """Priors 1/4: source 0 is on a plateau, 1 is not known, 2 makes progress and 3 none, and those two share the
    half that is left as they did."""
    prior, unknown = np.full(4, 0.25), np.array([0.01, math.inf, 0.01, 0.01])
    got = target(prior, np.array([0, 0, 0.5, 0]), unknown, compressed=[2.0, math.nan, math.nan, math.nan])
    free = target(prior, np.array([0, 0, 0.5, 0]), unknown)
    assert free.weights[0] < 0.25 and got.weights[:2].tolist() == [0.25, 0.25]
    assert got.weights[2] / got.weights[3] == pytest.approx(free.weights[2] / free.weights[3], rel=1e-12)
    assert got.weights.sum() == pytest.approx(1, rel=1e-14)


def test_a_source_on_a_plateau_stays_at_its_prior_and_is_told_so():
    strategy = WeightDynamics(np.array([0.6, 0.3, 0.1]), dials_of(3), towards_target=True)
    for _ in range(30):
        strategy.observe(estimates_for(3, progress=[0.1, 0, 0], compressed=[math.nan, math.nan, 2.0]))
    assert strategy.weights()[2] == pytest.approx(0.1, abs=1e-12)
    assert strategy.reasons() == ["progress", "exploration", "plateau"]


@pytest.mark.parametrize("signal", ["advantage", "reward_variance"])
def test_weights_that_follow_another_figure_know_no_plateau(signal):
    strategy = WeightDynamics(np.array([0.5, 0.5]), dials_of(2, signal=signal), towards_target=True)
    for _ in range(30):
        strategy.observe(estimates_for(2, compressed=2.0, **{signal: [1.0, 0.0], f"{signal}_se": 0.6}))
    assert strategy.weights()[0] > 0.55 and strategy.reasons() == ["progress", "exploration"]
