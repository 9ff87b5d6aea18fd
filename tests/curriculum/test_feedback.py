"""What PPO says of a source: against numpy on the raw samples, and the standard errors against repeated draws."""

import math

import numpy as np
import pytest

from destruct.curriculum.feedback import COLUMNS, summarize_feedback


def table_of(score: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Sums of COLUMNS over the last axis of scores and of mean |A|."""
    powers = {
        "score": score,
        "rollouts": np.ones_like(score),
        "score^2": score**2,
        "score^3": score**3,
        "score^4": score**4,
        "|A|": size,
        "|A|^2": size**2,
    }
    return np.stack([powers[name].sum(axis=-1) for name in COLUMNS], axis=-1)


def test_unequal_numbers_of_rollouts_against_numpy():
    rng = np.random.default_rng(0)
    counts = [4, 7, 50, 1000]
    scores = [rng.normal(0.3, 0.5, n) for n in counts]
    sizes = [np.abs(rng.normal(0, 1, n)) for n in counts]
    got = summarize_feedback(np.array([table_of(s, a) for s, a in zip(scores, sizes, strict=True)]))
    np.testing.assert_allclose(got.advantage, [a.mean() for a in sizes], rtol=1e-13)
    error = [a.std(ddof=1) / math.sqrt(a.size) for a in sizes]
    np.testing.assert_allclose(got.advantage_se, error, rtol=1e-12)
    np.testing.assert_allclose(got.reward_variance, [s.var(ddof=1) for s in scores], rtol=1e-12)
    fourth = np.array([((s - s.mean()) ** 4).mean() for s in scores])
    n, variance = np.array(counts), np.array([s.var(ddof=1) for s in scores])
    want = np.sqrt((fourth - variance**2 * (n - 3) / (n - 1)) / n)
    np.testing.assert_allclose(got.reward_variance_se, want, rtol=1e-10)


def test_few_rollouts_say_what_they_can_and_no_more():
    """None: nothing. One: a mean. Two and three (scores 1, 3; and 1, 3, 5): a variance of 2 and 4, without an error."""
    columns = [([], []), ([1.0], [0.5]), ([1.0, 3.0], [0.5, 1.5]), ([1.0, 3.0, 5.0], [0.5, 1.5, 2.5])]
    with np.errstate(all="raise"):
        got = summarize_feedback(np.array([table_of(np.array(s), np.array(a)) for s, a in columns]))
    np.testing.assert_allclose(got.advantage, [math.nan, 0.5, 1.0, 1.5], rtol=1e-15)
    np.testing.assert_allclose(got.advantage_se, [math.inf, math.inf, 0.5, 1 / math.sqrt(3)], rtol=1e-14)
    np.testing.assert_allclose(got.reward_variance, [math.nan, math.nan, 2.0, 4.0], rtol=1e-14)
    assert got.reward_variance_se.tolist() == [math.inf] * 4


def test_equal_scores_vary_by_nothing_and_huge_sums_are_no_negative_variance():
    got = summarize_feedback(
        np.array([table_of(np.full(9, 0.1), np.full(9, 0.7)), table_of(np.full(9, 1e4), np.ones(9))])
    )
    np.testing.assert_allclose(got.reward_variance, 0, atol=1e-6)
    assert np.all(got.reward_variance >= 0) and np.all(got.reward_variance_se >= 0)
    np.testing.assert_allclose(got.advantage_se, 0, atol=1e-8)


@pytest.mark.parametrize("skewed", [False, True])
def test_the_standard_errors_are_the_spread_of_repeated_draws(skewed):
    """4,000 sources alike of 200 rollouts; scores normal, or exponential: a kurtosis of 9 doubles the error of V."""
    rng = np.random.default_rng(1)
    shape = (4000, 200)
    scores = rng.exponential(0.5, shape) if skewed else rng.normal(2, 0.5, shape)
    sizes = rng.exponential(0.8, shape) if skewed else np.abs(rng.normal(0, 1, shape))
    got = summarize_feedback(table_of(scores, sizes))
    assert abs(got.reward_variance.mean() - 0.25) < 4 * got.reward_variance.std() / math.sqrt(4000)
    for figure, error in ((got.reward_variance, got.reward_variance_se), (got.advantage, got.advantage_se)):
        # The spread of 4,000 figures is known to 1.1%.
        assert math.sqrt(np.mean(error**2)) == pytest.approx(figure.std(), rel=0.05)
    normal_error = 0.25 * math.sqrt(2 / 199)
    assert got.reward_variance.std() == pytest.approx(normal_error * (2.0 if skewed else 1.0), rel=0.05)
