"""Standard errors and distinct-n, by hand, against resampling, and against numpy."""

import math

import numpy as np
import pytest
import torch

from destruct.evaluating.estimates import Estimate, Replicated, distinct, mean, mean_of, per_unit, perplexity, unpaired


def skewed(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Nats and tokens of n windows, long ones easier, as documents are."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(5, 64, n)
    return torch.from_numpy(tokens * (5 - tokens / 40 + rng.gamma(2.0, 0.5, n))), torch.from_numpy(tokens)


def test_the_loss_of_three_windows_and_its_error_worked_by_hand():
    """18 nats in 6 tokens; the residuals t - 3u are -1, 0 and 1, so SE^2 = 3/2 * 2 / 36 = 1/12."""
    got = per_unit(torch.tensor([2.0, 6.0, 10.0], dtype=torch.float64), torch.tensor([1, 2, 3]))
    assert got.value == 3 and got.se == pytest.approx(math.sqrt(1 / 12), rel=1e-12)
    assert got.z == pytest.approx(3 * math.sqrt(12)) and got.is_beyond_error


def test_windows_of_one_size_have_the_usual_error_of_a_mean():
    nats, _ = skewed(50)
    got = per_unit(nats, torch.full((50,), 7))
    assert got.value == pytest.approx(nats.mean().item() / 7, rel=1e-12)
    assert got.se == pytest.approx(nats.std().item() / 7 / math.sqrt(50), rel=1e-12)


def test_the_error_is_that_of_windows_drawn_again_and_again():
    """A bootstrap of 20,000 draws, whose own error is half a percent; the linear estimate is of order 1/n beside it."""
    nats, tokens = skewed(200)
    rng = np.random.default_rng(1)
    rows = rng.integers(0, 200, (20_000, 200))
    again = nats.numpy()[rows].sum(1) / tokens.numpy()[rows].sum(1)
    assert per_unit(nats, tokens).se == pytest.approx(again.std(), rel=0.03)


def test_a_window_without_a_predicted_token_changes_nothing_and_one_alone_has_no_error():
    nats, tokens = torch.tensor([2.0, 6.0, 0.0, 10.0], dtype=torch.float64), torch.tensor([1, 2, 0, 3])
    assert per_unit(nats, tokens).se == pytest.approx(math.sqrt(1 / 12), rel=1e-12)
    alone = per_unit(nats[:1], tokens[:1])
    assert (alone.value, alone.se) == (2.0, math.inf) and math.isnan(alone.z) and not alone.is_beyond_error
    assert math.isnan(per_unit(nats[2:3], tokens[2:3]).value)


def test_perplexity_is_the_exponential_and_its_error_the_slope_times_the_error():
    got = perplexity(Estimate(math.log(50), 0.02))
    assert (got.value, got.se) == (pytest.approx(50), pytest.approx(1.0))
    step = math.exp(math.log(50) + 1e-6) - 50
    assert got.se == pytest.approx(0.02 * step / 1e-6, rel=1e-5)
    assert perplexity(Estimate(1000.0, 0.1)) == Estimate(math.inf, math.inf)


def test_the_mean_over_sources_and_the_difference_of_samples_add_squares():
    assert mean_of([Estimate(1.0, 0.3), Estimate(3.0, 0.4)]) == Estimate(2.0, pytest.approx(0.25))
    assert unpaired(Estimate(3.0, 0.4), Estimate(1.0, 0.3)) == Estimate(2.0, pytest.approx(0.5))


def test_a_pair_shares_what_is_hard_for_both():
    """By numpy: the residuals of the differences, squared, weighted and n/(n-1)."""
    nats, tokens = skewed(100)
    other = nats + tokens * torch.from_numpy(np.random.default_rng(2).normal(0.05, 0.02, 100))
    got = per_unit(other - nats, tokens)
    omega = (tokens.double() / tokens.sum()).numpy()
    apart = ((other - nats) / tokens).numpy()
    delta = np.sum(omega * apart)
    want = math.sqrt(100 / 99 * np.sum(omega**2 * (apart - delta) ** 2))
    assert (got.value, got.se) == (pytest.approx(delta, rel=1e-12), pytest.approx(want, rel=1e-12))
    assert got.value == pytest.approx(per_unit(other, tokens).value - per_unit(nats, tokens).value)
    assert got.se < unpaired(per_unit(other, tokens), per_unit(nats, tokens)).se / 10


def test_distinct_n_of_two_responses_worked_by_hand():
    """Bigrams 12 21 12 and 12 23: 3 different ones of 5; without the first 2 of 2, without the second 2 of 3.

    So SE^2 = 1/2 * ((1/6)^2 + (1/6)^2) = 1/36.
    """
    responses = [[1, 2, 1, 2], [1, 2, 3]]
    got = distinct(responses, 2)
    assert got.value == 3 / 5 and got.without.tolist() == [1.0, pytest.approx(2 / 3)]
    assert got.estimate.se == pytest.approx(1 / 6)
    assert distinct(responses, 1).value == 3 / 7
    assert distinct(responses, 4).value == 1.0 and math.isnan(distinct(responses, 5).value)
    assert distinct([[1] * 9, [1] * 9], 1).value == 1 / 18


def test_leaving_a_response_out_is_counting_without_it():
    rng = np.random.default_rng(3)
    responses = [rng.integers(0, 9, rng.integers(0, 12)).tolist() for _ in range(20)]
    got = distinct(responses, 2)
    want = [distinct([*responses[:i], *responses[i + 1 :]], 2).value for i in range(20)]
    assert got.without.tolist() == pytest.approx(want, rel=1e-12)


def test_the_jackknife_of_a_mean_is_the_usual_error_and_a_pair_of_them_that_of_the_differences():
    rng = np.random.default_rng(4)
    a, b = rng.normal(0, 1, 30), rng.normal(0, 1, 30)
    assert mean(a.tolist()).estimate == Estimate(pytest.approx(a.mean()), pytest.approx(a.std(ddof=1) / math.sqrt(30)))
    apart = mean(a.tolist()).less(mean(b.tolist()))
    assert apart == Estimate(
        pytest.approx(a.mean() - b.mean()), pytest.approx((a - b).std(ddof=1) / math.sqrt(30), rel=1e-9)
    )
    assert mean([2.0]).estimate == Estimate(2.0, math.inf)
    assert isinstance(mean([2.0]), Replicated)


def test_the_jackknife_of_distinct_n_is_near_the_spread_over_fresh_samples():
    """Responses from a Zipf law, 40 a time: within a fifth of the spread over 2,000 such samples, on average."""
    rng = np.random.default_rng(5)

    def draw() -> list[list[int]]:
        return [rng.zipf(1.6, rng.integers(8, 24)).tolist() for _ in range(40)]

    found = [distinct(draw(), 2) for _ in range(2000)]
    spread = np.std([each.value for each in found])
    claimed = np.mean([each.estimate.se for each in found[:200]])
    assert claimed == pytest.approx(spread, rel=0.2)
