"""The stability conditions against the eigenvalues of the closed loop, and the loop's response from what it did."""

import math

import numpy as np
import pytest

from destruct.curriculum.dynamics import check_stability, estimate_response, largest_response, momentum_step
from destruct.errors import DestructError

DRAWS = 20_000


def random_loops(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """eta, mu, lam and c, (DRAWS,) each, on both sides of every condition."""
    eta, mu, lam = rng.uniform(0.01, 4, DRAWS), rng.uniform(0, 0.98, DRAWS), rng.uniform(0, 4, DRAWS)
    return eta, mu, lam, largest_response(mu, lam) * rng.uniform(0, 2, DRAWS)


def growth(eta, mu, lam, c) -> np.ndarray:
    """Largest |eigenvalue| of one round of (x, v, y): v <- mu v + (1-mu) eta (y - lam x), x <- x + v, y <- y - c x."""
    zero, one, gain = np.zeros_like(mu), np.ones_like(mu), (1 - mu) * eta
    velocity = np.stack([-gain * lam, mu, gain], axis=-1)
    weight = np.stack([one, zero, zero], axis=-1) + velocity
    signal = np.stack([-c, zero, one], axis=-1)
    return np.abs(np.linalg.eigvals(np.stack([weight, velocity, signal], axis=-2))).max(axis=-1)


def test_the_loop_above_is_that_of_the_step():
    """The matrix of one round against `momentum_step` on a state of its own."""
    eta, mu, lam, c = 0.7, 0.4, 1.3, 0.2
    x, v, y = np.array([0.3]), np.array([-0.1]), np.array([0.5])
    for _ in range(200):
        v, moved = momentum_step(x, v, y, np.zeros(1), eta, mu, lam)
        x, y = moved, y - c * x
    expected = growth(*(np.array([value]) for value in (eta, mu, lam, c)))[0]
    size = abs(x[0]) + abs(v[0]) + abs(y[0])
    assert math.log(size) / 200 == pytest.approx(math.log(expected), abs=0.03)


def test_the_jury_conditions_are_those_of_the_eigenvalues():
    """20,000 loops, none of which is judged wrongly; within 1e-9 of the boundary either answer is right."""
    eta, mu, lam, c = random_loops(np.random.default_rng(0))
    a, b = (1 - mu) * eta * lam, (1 - mu) * eta * c
    conditions = (a * (1 - mu) > b) & (a * (1 - mu) - b < 2 * (1 - mu**2)) & (a < 2 * (1 + mu) + b / 2)
    largest = growth(eta, mu, lam, c)
    clear = np.abs(largest - 1) > 1e-9
    assert np.count_nonzero((conditions != (largest < 1)) & clear) == 0
    assert clear.mean() > 0.99 and 0.2 < conditions.mean() < 0.8


def test_the_bound_on_the_response_is_the_only_condition_where_the_dials_pass():
    """Where `check_stability` lets the dials through, c < lam (1 - mu) alone decides, for every c > 0."""
    eta, mu, lam, c = random_loops(np.random.default_rng(1))
    passed = np.array([passes(*dials) for dials in zip(eta, mu, lam, strict=True)])
    a, b = (1 - mu) * eta * lam, (1 - mu) * eta * c
    others = (a * (1 - mu) - b < 2 * (1 - mu**2)) & (a < 2 * (1 + mu) + b / 2)
    assert others[passed].all() and not others[~passed].all()
    largest = growth(eta, mu, lam, c)
    clear = passed & (np.abs(largest - 1) > 1e-9)
    assert np.count_nonzero((c < largest_response(mu, lam))[clear] != (largest < 1)[clear]) == 0
    assert 0.3 < passed.mean() < 1


def passes(eta: float, mu: float, lam: float) -> bool:
    try:
        check_stability(eta, mu, lam)
    except DestructError:
        return False
    return True


def test_without_damping_no_response_is_stable():
    """|z| = sqrt(1 + b) > 1 at mu = 0: 1.0247 a round for b = .05."""
    assert largest_response(0.5, 0.0) == 0
    one = np.ones(1)
    assert growth(one, 0 * one, 0 * one, 0.05 * one)[0] == pytest.approx(1.0247, abs=1e-4)
    rng = np.random.default_rng(2)
    eta, mu, c = rng.uniform(0.01, 2, 1000), rng.uniform(0, 0.98, 1000), rng.uniform(1e-3, 1, 1000)
    assert growth(eta, mu, np.zeros(1000), c).min() > 1


def weights_and_signals(rng: np.random.Generator, c: float, rounds: int = 12, size: int = 4):
    """Weights that wander slowly, and signals that lose c times the weight a round, each source with its own drift."""
    weights = 0.25 + rng.normal(0, 0.02, (rounds, size)).cumsum(axis=0)
    change = rng.normal(0, 0.3, size) - c * weights
    return weights, np.concatenate([rng.normal(0, 1, (1, size)), change]).cumsum(axis=0)


def test_the_response_is_recovered_exactly_without_noise():
    rng = np.random.default_rng(3)
    for c in (0.0, 0.05, 0.5, -0.2):
        assert estimate_response(*weights_and_signals(rng, c)) == pytest.approx(c, abs=1e-11)


@pytest.mark.parametrize("c", [0.0, 0.1])
def test_weights_that_follow_the_signals_errors_do_not_look_like_an_answer(c):
    """The loop itself, each signal measured with an error that the weights then follow; 1,000 loops of 12 rounds.

    Least squares puts the median response at .34 and .50; the instrument is within .03.
    """
    rng = np.random.default_rng(4)
    estimates, least_squares = [], []
    for _ in range(1000):
        weights, signals = followed(rng, c)
        estimates.append(estimate_response(weights[:-1], signals))
        w = weights[:-1] - weights[:-1].mean(axis=0)
        change = np.diff(signals, axis=0)
        least_squares.append(-np.sum((change - change.mean(axis=0)) * w) / np.sum(w**2))
    assert np.nanmedian(estimates) == pytest.approx(c, abs=0.03)
    assert np.median(least_squares) > c + 0.1


def followed(rng: np.random.Generator, c: float, rounds: int = 12, size: int = 6):
    """Weights after each round of the default dials, and the signals as measured: (rounds, S) each."""
    w, v, y = np.zeros(size), np.zeros(size), rng.normal(0, 0.3, size)
    weights, signals = [], []
    for _ in range(rounds):
        measured = y + rng.normal(0, 0.1, size)
        v, w = momentum_step(w, v, measured, np.zeros(size), eta=0.5, mu=0.5, lam=1.0)
        y = y - c * w
        weights.append(w)
        signals.append(measured)
    return np.array(weights), np.array(signals)


def test_no_response_is_claimed_from_too_little():
    rng = np.random.default_rng(5)
    weights, signals = weights_and_signals(rng, c=0.3)
    for intervals in (0, 1, 2):
        assert math.isnan(estimate_response(weights[:intervals], signals[: intervals + 1]))
    assert not math.isnan(estimate_response(weights[:4], signals[:5]))
    still = np.tile(weights[:1], (12, 1))
    assert math.isnan(estimate_response(still, signals))
    assert math.isnan(estimate_response(still + rng.normal(0, 1e-13, still.shape), signals))
    assert math.isnan(estimate_response(weights, np.full_like(signals, math.nan)))
