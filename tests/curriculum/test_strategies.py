"""Every strategy against the specification's own lines, the simplex, permutations, noise and a stop in mid-run."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike

from destruct.curriculum.estimates import Estimates, Floats
from destruct.curriculum.panels import PanelLosses
from destruct.curriculum.progress import ProgressEstimator
from destruct.curriculum.strategies import STRATEGIES, Options, Strategy, make_strategy
from destruct.curriculum.target import TargetRules
from destruct.curriculum.weight_dynamics import SIGNALS, Dials, WeightDynamics
from destruct.errors import DestructError
from tests.curriculum.rounds import completed, estimates_for, reordered

RULES = TargetRules(z=1.0, credit=0.5, rescue=0.5, repetition_epochs=15.4, exploration_rounds=5.0, plateaus=True)
USUAL: dict[str, Any] = {"eta": 0.5, "mu": 0.5, "lam": 1.0, "projection": "euclidean", "rules": RULES}
MOVING = [name for name in STRATEGIES if name not in ("uniform", "static", "temperature")]


def build(name: str, prior: ArrayLike, options: Options | None = None, **dials: Any) -> Any:
    """With sizes that are all alike and a reference model that knows everything, unless others are given."""
    prior = np.array(prior, float)
    floor, signal = 0.25 * float(np.min(prior)), "metric" if name == "literal" else "progress"
    settings = Dials(**({**USUAL, "floor": floor, "signal": signal} | dials))
    return make_strategy(name, prior, settings, options or plain_options(prior.size))


def plain_options(size: int) -> Options:
    return Options(temperature=2.0, sizes=np.ones(size), reference=np.zeros(size))


def random_round(rng: np.random.Generator, round_index: int, size: int) -> Estimates:
    tokens = rng.integers(100, 1000, size)
    return estimates_for(
        size,
        round_index,
        difficulty=(difficulty := rng.normal(3, 0.5, size)),
        metric=difficulty,
        progress=rng.normal(0.02, 0.03, size),
        progress_se=rng.uniform(0.001, 0.05, size),
        tokens=tokens,
        share=tokens / tokens.sum(),
        epochs=rng.uniform(0, 3, size),
        exhausted=rng.random(size) < 0.1,
        advantage=rng.uniform(0.5, 1, size),
        advantage_se=rng.uniform(0.01, 0.1, size),
        reward_variance=rng.uniform(0, 1, size),
        reward_variance_se=rng.uniform(0.01, 0.1, size),
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


@pytest.mark.parametrize("signal", ["advantage", "reward_variance"])
def test_literal_follows_a_level_less_its_mean_and_stays_while_nothing_is_known(signal):
    """Levels .9, .5 and .1 are .4, 0 and -.4 about their mean; a source without a rollout is left out of both."""
    strategy = build("literal", [0.2, 0.3, 0.5], signal=signal)
    strategy.observe(estimates_for(3))
    assert strategy.weights().tolist() == [0.2, 0.3, 0.5]
    strategy.observe(estimates_for(3, **{signal: [0.9, 0.5, 0.1]}))
    np.testing.assert_allclose(strategy.weights(), [0.4, 0.3, 0.3], rtol=1e-14)
    strategy.observe(estimates_for(3, **{signal: [0.9, math.nan, 0.7]}))
    np.testing.assert_allclose(strategy.weights(), [0.45, 0.3, 0.25], rtol=1e-14)


@pytest.mark.parametrize("signal", SIGNALS)
def test_dynamics_without_damping_target_and_floor_are_literal(signal):
    rng = np.random.default_rng(1)
    settings = Dials(0.5, 0.0, 0.0, floor=0.0, signal=signal, projection="clip_renorm", rules=RULES)
    bare = WeightDynamics(np.array([0.5, 0.3, 0.2]), settings, towards_target=False)
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
        strategy.observe(estimates_for(2, round_index, progress=[0.1, 0.0], progress_se=0.0))
        seen.append(strategy.weights()[0])
    np.testing.assert_allclose(seen, [0.5, 0.5, 0.6, 0.725], rtol=1e-14)
    np.testing.assert_allclose(strategy.target, [0.9, 0.1], rtol=1e-14)


def test_uniform_static_and_temperature_never_move():
    """Of 1, 4, 9 and 36 tokens at T = 2 the square roots 1, 2, 3 and 6 are divided by their sum."""
    options = Options(temperature=2.0, sizes=np.array([1.0, 4, 9, 36]))
    roots = [1 / 12, 2 / 12, 3 / 12, 6 / 12]
    for name, want in (("uniform", [0.25] * 4), ("static", [0.4, 0.3, 0.2, 0.1]), ("temperature", roots)):
        strategy = build(name, [0.4, 0.3, 0.2, 0.1], options)
        for round_index in range(5):
            strategy.observe(estimates_for(4, round_index, difficulty=[9, 1, 1, 1], progress=[0.5, 0, 0, 0]))
        np.testing.assert_allclose(strategy.weights(), want, rtol=1e-14)
        assert strategy.weights().tolist() == strategy.target.tolist()


@pytest.mark.parametrize("name", STRATEGIES)
def test_no_weight_moves_before_the_third_round(name):
    strategy = build(name, [0.6, 0.4])
    start = strategy.weights().tolist()
    for round_index in range(3):
        assert strategy.weights().tolist() == start
        strategy.observe(estimates_for(2, round_index, difficulty=[5, 1], metric=[5, 1], progress=[1, 0]))
    assert (strategy.weights().tolist() != start) == (name in MOVING)


@pytest.mark.parametrize("name", STRATEGIES)
def test_reordered_sources_get_reordered_weights(name):
    rng = np.random.default_rng(2)
    order = np.array([3, 0, 4, 1, 2])
    prior, sizes, reference = np.array([0.3, 0.25, 0.2, 0.15, 0.1]), rng.uniform(1, 9, 5), rng.uniform(2, 3, 5)
    straight = build(name, prior, Options(2.0, sizes, reference))
    other = build(name, prior[order], Options(2.0, sizes[order], reference[order]))
    for round_index in range(15):
        now = random_round(rng, round_index, 5)
        straight.observe(now)
        other.observe(reordered(now, order))
        np.testing.assert_allclose(other.weights(), straight.weights()[order], rtol=0, atol=1e-13)
        assert other.reasons() == [straight.reasons()[k] for k in order]


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("size", [1, 2, 7])
@pytest.mark.parametrize("signal", SIGNALS)
def test_weights_stay_on_the_simplex_and_the_floor_under_any_estimates(name, size, signal):
    """NaN, infinities, huge and negative figures in every column that is measured, and one source alone."""
    rng = np.random.default_rng(3)
    floor, measured = 0.25 / size, ("difficulty", "metric", "progress", "advantage", "reward_variance", "gap_growth")
    strategy = build(name, np.full(size, 1 / size), floor=floor, signal=signal)
    for round_index in range(100):
        figures = {}
        for column in measured:
            x = rng.normal(0, 1, (2, size)) * rng.choice([1e-3, 1, 1e300], (2, size))
            broken = rng.random((2, size)) < 0.1
            x[broken] = rng.choice([math.nan, math.inf, -math.inf], broken.sum())
            figures |= {column: x[0], "difficulty_se" if column == "metric" else f"{column}_se": np.abs(x[1])}
        strategy.observe(replace(random_round(rng, round_index, size), **figures))
        for shares in (strategy.weights(), strategy.target):
            assert np.isfinite(shares).all() and abs(shares.sum() - 1) < 1e-12
        assert strategy.weights().min() >= (0 if name in ("literal", "doremi", "odm") else floor)
        if size == 1:
            assert strategy.weights().tolist() == [1.0]


def test_a_source_that_is_not_measured_keeps_its_prior_while_the_others_move():
    strategy = build("second_order", [0.6, 0.3, 0.1])
    for _ in range(30):
        strategy.observe(estimates_for(3, metric=[3, math.nan, 3], progress=0.1, progress_se=[0.01, math.inf, 0.01]))
    assert strategy.weights()[1] == pytest.approx(0.3, abs=1e-12)
    assert strategy.weights()[2] > 0.25, "as much progress as the first one"
    assert strategy.reasons() == ["progress", "not measured yet", "progress"]


def test_literal_keeps_its_weights_where_the_three_lines_would_divide_by_zero():
    """All sources get worse by more than they have left: 0 / 0 in the bare rule; the round is dropped and counted."""
    strategy = build("literal", [0.5, 0.5], signal="progress")
    for round_index in range(4):
        strategy.observe(estimates_for(2, round_index, progress=[-2.0, -3.0]))
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
        strategy.observe(completed(estimator.observe(panels_of(row, population=1000))))
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
@pytest.mark.parametrize("signal", SIGNALS)
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


def test_what_a_strategy_needs_and_was_not_given_is_a_fault_of_ours():
    for name in ("temperature", "doremi"):
        with pytest.raises(ValueError, match=f"{name}: the .* of the sources are not given"):
            build(name, [0.5, 0.5], Options())


def test_states_of_other_sources_or_another_strategy_are_refused():
    state = build("second_order", [0.5, 0.5]).state_dict()
    with pytest.raises(DestructError, match="2 weights; this run has 3 sources"):
        build("second_order", [0.4, 0.3, 0.3]).load_state_dict(state)
    for name in MOVING:
        with pytest.raises(DestructError, match="0 (weights|current); this run has 2 sources"):
            build(name, [0.5, 0.5]).load_state_dict(build("static", [0.5, 0.5]).state_dict())
