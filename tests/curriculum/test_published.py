"""DoReMi, ODM and the temperature rule by hand, and ODM against the bandit that was published."""

import math

import numpy as np
import pytest

from destruct.curriculum.published import DoReMi, OnlineDataMixing
from destruct.curriculum.strategies import Options, make_strategy
from tests.curriculum.rounds import dials_of, estimates_of


def tempered(logits) -> np.ndarray:
    return np.exp(logits) / np.sum(np.exp(logits))


def test_doremi_by_hand_over_two_moves():
    """Excess (1, 1/2), then (0, 2), one source being better than the reference; c = 1e-4; averaged with the prior."""
    strategy = DoReMi(np.array([0.8, 0.2]), reference=np.array([1.0, 1.0]))
    strategy.observe(estimates_of(2, difficulty=[2.0, 1.5]))
    first = 0.9999 * np.array([0.8 * math.e, 0.2 * math.exp(0.5)]) / (0.8 * math.e + 0.2 * math.exp(0.5)) + 0.00005
    np.testing.assert_allclose(strategy.target, first, rtol=1e-14)
    np.testing.assert_allclose(strategy.weights(), (np.array([0.8, 0.2]) + first) / 2, rtol=1e-14)
    strategy.observe(estimates_of(3, difficulty=[0.3, 3.0]))
    raised = first * [1, math.exp(2)]
    second = 0.9999 * raised / raised.sum() + 0.00005
    np.testing.assert_allclose(strategy.target, second, rtol=1e-14)
    np.testing.assert_allclose(strategy.weights(), (np.array([0.8, 0.2]) + first + second) / 3, rtol=1e-14)


def test_doremi_keeps_the_last_score_of_what_is_not_measured():
    """Of source 0 the score stays 1 through a NaN and an infinite loss, so three rounds raise it by e^3."""
    prior = np.array([0.25, 0.75])
    strategy = DoReMi(prior, reference=np.zeros(2))
    for round_index, loss in ((2, 1.0), (3, math.nan), (4, math.inf)):
        strategy.observe(estimates_of(round_index, difficulty=[loss, 0.0]))
    a = prior
    for _ in range(3):
        a = 0.9999 * a * [math.e, 1] / np.sum(a * [math.e, 1]) + 0.00005
    np.testing.assert_allclose(strategy.target, a, rtol=1e-14)
    never_measured = DoReMi(prior, reference=np.zeros(2))
    never_measured.observe(estimates_of(2, difficulty=[math.nan, math.nan]))
    np.testing.assert_allclose(never_measured.target, 0.9999 * prior + 0.00005, rtol=1e-14)


def test_odm_by_hand_over_two_moves():
    """Three batches, then two: R = .3 D, then + .2 D; the temperature is the eps of the turn before."""
    strategy = OnlineDataMixing(np.array([0.8, 0.2]))
    strategy.observe(estimates_of(2, batches=3, difficulty=[2.0, 4.0]))
    eps_2, eps_3, eps_4, eps_5 = (math.sqrt(math.log(2) / (2 * t)) for t in (2, 3, 4, 5))
    want = (1 - 2 * eps_3) * tempered(eps_2 * np.array([0.6, 1.2])) + eps_3
    np.testing.assert_allclose(strategy.weights(), want, rtol=1e-14)
    strategy.observe(estimates_of(3, batches=2, difficulty=[1.0, 5.0]))
    want = (1 - 2 * eps_5) * tempered(eps_4 * np.array([0.8, 2.2])) + eps_5
    np.testing.assert_allclose(strategy.weights(), want, rtol=1e-14)
    assert strategy.target.tolist() == strategy.weights().tolist()


def test_odm_stays_at_equal_weights_while_eps_is_one_over_the_sources():
    """eps_t = min(1/S, sqrt(ln S / (S t))) is 1/S up to t = S ln S: 11 of 7 sources go by before anything moves."""
    strategy = OnlineDataMixing(np.full(7, 1 / 7))
    for turn in range(1, 16):
        strategy.observe(estimates_of(1 + turn, difficulty=[9.0, 1, 1, 1, 1, 1, 1]))
        moved = strategy.weights()[0] > 1 / 7 + 1e-12
        assert moved == (turn > 7 * math.log(7))


def test_odm_pays_a_source_that_is_not_measured_what_the_others_are_on_average():
    strategy, full = (OnlineDataMixing(np.full(3, 1 / 3)) for _ in range(2))
    for round_index in range(2, 12):
        strategy.observe(estimates_of(round_index, batches=4, difficulty=[2.0, math.nan, 5.0]))
        full.observe(estimates_of(round_index, batches=4, difficulty=[2.0, 3.5, 5.0]))
    assert strategy.weights().tolist() == full.weights().tolist()


def test_odm_is_the_mean_of_the_published_bandit():
    """One source is drawn at each step and its R grows by (loss / 10) / probability; 4,000 runs of 40 steps.

    Probabilities are ours, since those of a run depend on its own draws. eps is that of the published rule.
    """
    rng = np.random.default_rng(0)
    runs, batches = 4000, 5
    prior = np.array([0.5, 0.3, 0.2])
    strategy = OnlineDataMixing(prior)
    rewards, turn = np.zeros((runs, 3)), 0
    for round_index in range(2, 10):
        loss, p = rng.uniform(1, 5, 3), strategy.weights()
        for _ in range(batches):
            drawn = rng.choice(3, size=runs, p=p)
            rewards[np.arange(runs), drawn] += loss[drawn] / 10 / p[drawn]
            turn += 1
        strategy.observe(estimates_of(round_index, batches=batches, difficulty=loss))
        ours = np.array(strategy.state_dict()["levels"]["rewards"])
        error = rewards.std(axis=0, ddof=1) / math.sqrt(runs)
        assert np.all(np.abs(rewards.mean(axis=0) - ours) < 4 * error)
        eps, before = (min(1 / 3, math.sqrt(math.log(3) / (3 * t))) for t in (turn, turn - 1))
        want = (1 - 3 * eps) * tempered(before * ours) + eps
        np.testing.assert_allclose(strategy.weights(), want, rtol=1e-12)
    assert np.ptp(strategy.weights() / prior) > 0.1


@pytest.mark.parametrize(
    "strategy", [DoReMi(np.array([0.6, 0.4]), np.zeros(2)), OnlineDataMixing(np.array([0.6, 0.4]))]
)
def test_two_rounds_are_waited_for(strategy):
    for round_index in range(2):
        strategy.observe(estimates_of(round_index, batches=100, difficulty=[9.0, 1.0]))
    np.testing.assert_allclose(strategy.weights(), [0.6, 0.4], rtol=1e-15)


@pytest.mark.parametrize(
    ("heat", "want"),
    [(1.0, [0.0625, 0.9375]), (4.0, np.array([1, 15**0.25]) / (1 + 15**0.25)), (1e12, [0.5, 0.5])],
)
def test_temperature_by_hand(heat, want):
    """Sizes 10 and 150; a source of a thousand billion tokens does not overflow either."""
    for scale in (1.0, 1e12):
        options = Options(temperature=heat, sizes=np.array([10.0, 150.0]) * scale)
        strategy = make_strategy("temperature", np.array([0.9, 0.1]), dials_of(2), options)
        strategy.observe(estimates_of(9, difficulty=[9.0, 1.0], progress=[1.0, 0.0]))
        np.testing.assert_allclose(strategy.weights(), want, rtol=1e-10)


def test_temperature_five_on_a_hundred_to_one():
    """100^(1/5) = 2.5119: the small source gets 1 of 3.5119 instead of 1 of 101."""
    options = Options(temperature=5.0, sizes=np.array([1.0, 100.0]))
    strategy = make_strategy("temperature", np.array([0.5, 0.5]), dials_of(2), options)
    np.testing.assert_allclose(strategy.weights(), [1 / 3.511886, 2.511886 / 3.511886], rtol=1e-6)
