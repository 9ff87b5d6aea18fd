"""Every strategy against the specification's own lines, the simplex, permutations, noise and a stop in mid-run."""

import json
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike

from destruct.curriculum.estimates import Estimates, ProgressEstimator
from destruct.curriculum.panels import PanelLosses
from destruct.curriculum.strategies import STRATEGIES, DynamicsSettings, Floats, Strategy, WeightDynamics, make_strategy
from destruct.errors import DestructError

USUAL: dict[str, Any] = {"eta": 0.5, "mu": 0.5, "lam": 1.0, "z": 1.0, "signal": "metric", "projection": "euclidean"}


def build(name: str, prior: ArrayLike, **dials: Any) -> Any:
    prior = np.array(prior, float)
    return make_strategy(name, prior, DynamicsSettings(**({**USUAL, "floor": 0.25 * float(np.min(prior))} | dials)))


def estimates(round_index: int, metric: Any, progress: Any, progress_se: Any = 0.01) -> Estimates:
    """A round with these figures; a single number is meant for every source."""
    columns = np.broadcast_arrays(np.array(metric, float), 0.01, 0.1, metric, progress, progress_se)
    difficulty, *others = (column.astype(float) for column in columns)
    return Estimates(round_index, difficulty, *others)


def random_round(rng: np.random.Generator, round_index: int, size: int) -> Estimates:
    return estimates(
        round_index, rng.normal(3, 0.5, size), rng.normal(0.02, 0.03, size), rng.uniform(0.001, 0.05, size)
    )


@pytest.mark.parametrize("signal", ["metric", "progress"])
def test_literal_is_the_three_lines_bit_for_bit(signal):
    """Over 20 rounds that drive sources to 0 and back; the two before the third round move nothing."""
    rng = np.random.default_rng(0)
    strategy = build("literal", np.full(5, 0.2), signal=signal)
    sampling_weights = np.full(5, 0.2)
    touched = False
    for round_index in range(22):
        now = random_round(rng, round_index, 5)
        strategy.observe(now)
        if round_index >= 2:
            gradient = now.metric - np.mean(now.metric) if signal == "metric" else now.progress
            sampling_weights += 0.5 * gradient
            sampling_weights = np.clip(sampling_weights, a_min=0, a_max=None)
            sampling_weights /= np.sum(sampling_weights)
        assert strategy.weights().tobytes() == sampling_weights.tobytes()
        touched |= bool((sampling_weights == 0).any())
    assert touched == (signal == "metric")


@pytest.mark.parametrize("signal", ["metric", "progress"])
def test_second_order_dynamics_without_damping_and_floor_are_literal(signal):
    rng = np.random.default_rng(1)
    settings = DynamicsSettings(eta=0.5, mu=0, lam=0, floor=0, z=1, signal=signal, projection="clip_renorm")
    bare = WeightDynamics(np.array([0.5, 0.3, 0.2]), settings)
    literal = build("literal", [0.5, 0.3, 0.2], signal=signal)
    for round_index in range(20):
        now = random_round(rng, round_index, 3)
        bare.observe(now)
        literal.observe(now)
        assert bare.weights().tobytes() == literal.weights().tobytes()


def test_second_order_worked_by_hand_over_two_moves():
    """Only source 0 progresses, beyond doubt: q = (.9, .1). v = .25 * (q - w) at first, then half of it is kept.

    w: .5 -> .5 + .25 * .4 = .6 -> .6 + (.05 + .25 * (.4 - .1)) = .725.
    """
    strategy = build("second_order", [0.5, 0.5])
    seen = []
    for round_index in range(4):
        strategy.observe(estimates(round_index, [3, 3], [0.1, 0.0], progress_se=0.0))
        seen.append(strategy.weights()[0])
    np.testing.assert_allclose(seen, [0.5, 0.5, 0.6, 0.725], rtol=1e-14)
    np.testing.assert_allclose(strategy.target, [0.9, 0.1], rtol=1e-14)


def test_uniform_and_static_never_move():
    for name, want in (("uniform", [0.25] * 4), ("static", [0.4, 0.3, 0.2, 0.1])):
        strategy = build(name, [0.4, 0.3, 0.2, 0.1])
        for round_index in range(5):
            strategy.observe(estimates(round_index, [9, 1, 1, 1], [0.5, 0, 0, 0], 0))
        assert strategy.weights().tolist() == strategy.target.tolist() == want


@pytest.mark.parametrize("name", STRATEGIES)
def test_no_weight_moves_before_the_third_round(name):
    strategy = build(name, [0.6, 0.4])
    start = strategy.weights().tolist()
    for round_index in range(2):
        strategy.observe(estimates(round_index, [5, 1], [1.0, 0.0], 0.0))
        assert strategy.weights().tolist() == start


@pytest.mark.parametrize("name", STRATEGIES)
def test_permuted_sources_get_permuted_weights(name):
    rng = np.random.default_rng(2)
    order = np.array([3, 0, 4, 1, 2])
    prior = np.array([0.3, 0.25, 0.2, 0.15, 0.1])
    straight, permuted = build(name, prior), build(name, prior[order])
    for round_index in range(15):
        now = random_round(rng, round_index, 5)
        straight.observe(now)
        permuted.observe(estimates(round_index, now.metric[order], now.progress[order], now.progress_se[order]))
        np.testing.assert_allclose(permuted.weights(), straight.weights()[order], rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("size", [1, 2, 7])
@pytest.mark.parametrize("signal", ["metric", "progress"])
def test_weights_stay_on_the_simplex_and_the_floor_under_any_estimates(name, size, signal):
    """NaN, infinities, huge and negative figures in every column, and one source alone."""
    rng = np.random.default_rng(3)
    floor = 0.25 / size
    strategy = build(name, np.full(size, 1 / size), floor=floor, signal=signal)
    for round_index in range(200):
        columns = rng.normal(0, 1, (3, size)) * rng.choice([1e-3, 1, 1e300], (3, size))
        broken = rng.random((3, size)) < 0.1
        columns[broken] = rng.choice([math.nan, math.inf, -math.inf], broken.sum())
        columns[2] = np.abs(columns[2])
        strategy.observe(estimates(round_index, *columns))
        for shares in (strategy.weights(), strategy.target):
            assert np.isfinite(shares).all() and abs(shares.sum() - 1) < 1e-12
        assert strategy.weights().min() >= (0 if name == "literal" else floor)
        if size == 1:
            assert strategy.weights().tolist() == [1.0]


def test_a_source_that_is_not_measured_holds_all_weights_at_the_prior():
    strategy = build("second_order", [0.6, 0.3, 0.1])
    for round_index in range(30):
        strategy.observe(estimates(round_index, [3, math.nan, 3], [0.1, 0.0, 0.1], [0.01, math.inf, 0.01]))
    np.testing.assert_allclose(strategy.weights(), [0.6, 0.3, 0.1], atol=1e-15)


def test_literal_keeps_its_weights_where_the_three_lines_would_divide_by_zero():
    """All sources get worse by more than they have left: 0 / 0 in the bare rule; the round is dropped and counted."""
    strategy = build("literal", [0.5, 0.5], signal="progress")
    for round_index in range(4):
        strategy.observe(estimates(round_index, [3, 3], [-2.0, -3.0]))
    assert strategy.weights().tolist() == [0.5, 0.5]
    assert strategy.held == 2


def panels_of(losses: Floats, population: int) -> list[PanelLosses]:
    size = losses.shape[1]
    return [PanelLosses(np.arange(size), row, np.full(size, 64), population) for row in losses]


def weight_history(strategy: Strategy, losses: Floats) -> Floats:
    """Weights (rounds, S) under losses (rounds, S, n)."""
    estimator = ProgressEstimator(losses.shape[1], kappa=0)
    history = []
    for row in losses:
        strategy.observe(estimator.observe(panels_of(row, population=1000)))
        history.append(strategy.weights())
    return np.array(history)


@pytest.mark.parametrize("prior", [[0.2] * 5, [0.4, 0.3, 0.15, 0.1, 0.05]])
def test_pure_noise_leaves_the_weights_near_the_prior(prior):
    """Losses iid around a constant, 40 rounds, 8 draws: .04 away on average (largest source of a round), never .25."""
    rng = np.random.default_rng(4)
    distances = []
    for _ in range(8):
        level = rng.normal(3, 0.4, (1, 5, 100))
        history = weight_history(build("second_order", prior), level + rng.normal(0, 0.08, (40, 5, 100)))
        distances.append(np.abs(history - prior).max(axis=1))
    assert np.mean(distances) < 0.04
    assert np.max(distances) < 0.25


def test_the_source_that_is_learnt_gains_on_noise_and_on_what_is_known_already():
    """Source 0 falls as a power law, 1 is noise, 2 is flat, over 40 rounds; mean shares of the last ten, 4 draws."""
    rng = np.random.default_rng(5)
    curve = np.stack([3 * np.arange(1, 41) ** -0.5, np.full(40, 4.2), np.full(40, 1.0)], axis=1)[:, :, None]
    jitter = np.array([0.02, 0.2, 0.02])[None, :, None]
    shares = []
    for _ in range(4):
        losses = curve + rng.normal(0, 0.3, (1, 3, 100)) + jitter * rng.normal(0, 1, (40, 3, 100))
        shares.append(weight_history(build("second_order", [1 / 3] * 3), losses)[-10:].mean(axis=0))
    gained, noise, known = np.mean(shares, axis=0)
    assert gained > 0.6 and noise < 0.2 and known < 0.2


def test_a_constant_on_one_source_moves_no_weight():
    rng = np.random.default_rng(6)
    losses = rng.normal(3, 0.3, (1, 3, 50)) - 0.01 * np.arange(20)[:, None, None] + rng.normal(0, 0.05, (20, 3, 50))
    shifted = losses + np.array([0, 5, 0])[None, :, None]
    before, after = (weight_history(build("second_order", [1 / 3] * 3), cube) for cube in (losses, shifted))
    assert np.ptp(before[-1]) > 0.01
    np.testing.assert_allclose(after, before, atol=1e-10)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("signal", ["metric", "progress"])
def test_a_stop_in_mid_run_changes_no_later_bit(name, signal):
    prior = [0.4, 0.3, 0.2, 0.1]
    rounds = [random_round(np.random.default_rng(100 + r), r, 4) for r in range(20)]
    first, second = build(name, prior, signal=signal), build(name, prior, signal=signal)
    for now in rounds[:9]:
        first.observe(now)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.target.tobytes() == first.target.tobytes()
    for now in rounds[9:]:
        first.observe(now)
        second.observe(now)
        assert second.weights().tobytes() == first.weights().tobytes()


def test_weights_belong_to_the_caller():
    for name in STRATEGIES:
        strategy = build(name, [0.5, 0.5])
        strategy.weights()[:] = 7
        strategy.target[:] = 7
        assert strategy.weights().tolist() == strategy.target.tolist() == [0.5, 0.5]


def test_contradictions_are_refused_with_their_figures():
    for dials, problem in (
        ({"eta": 9.0, "mu": 0.0}, "oscillate"),
        ({"projection": "clip_renorm"}, "keeps no floor, yet a floor of 0.025"),
        ({"floor": 0.2}, "source 1 has a prior of 0.1, below the floor of 0.2"),
        ({"projection": "nearest"}, "'nearest' is not known"),
    ):
        with pytest.raises(DestructError, match=problem):
            build("second_order", [0.9, 0.1], **dials)
    with pytest.raises(DestructError, match="'linear' is not known"):
        build("linear", [0.5, 0.5])
    for mixture in ([0.5, 0.6], [1.5, -0.5], [math.nan, 1.0]):
        with pytest.raises(DestructError, match="is not a mixture"):
            build("static", mixture)


def test_estimates_and_states_of_another_number_of_sources_are_refused():
    for name in STRATEGIES:
        with pytest.raises(ValueError, match="estimates of 3 sources for weights of 2"):
            build(name, [0.5, 0.5]).observe(estimates(0, [1, 2, 3], 0.0))
    state = build("second_order", [0.5, 0.5]).state_dict()
    with pytest.raises(DestructError, match="2 weights; this run has 3 sources"):
        build("second_order", [0.4, 0.3, 0.3]).load_state_dict(state)
    with pytest.raises(DestructError, match="0 weights; this run has 2 sources"):
        build("second_order", [0.5, 0.5]).load_state_dict(build("static", [0.5, 0.5]).state_dict())
