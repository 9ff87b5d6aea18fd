"""What holds of every strategy whatever is measured: the simplex, a stop in mid-run, and the order of the sources."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from destruct.curriculum.estimates import Estimates
from destruct.curriculum.panels import PanelLosses, panel_items
from destruct.curriculum.progress import ProgressEstimator
from destruct.curriculum.strategies import STRATEGIES, Options, make_strategy
from destruct.curriculum.weight_dynamics import SIGNALS
from tests.curriculum.rounds import dials_of, estimates_of, reordered

ROUNDS = 6

anything = st.one_of(
    st.floats(),
    st.sampled_from([math.nan, math.inf, -math.inf, 1e300, -1e300, 0.0, -1.0, 1e-300]),
    st.floats(-5, 5),
)
moderate = st.one_of(st.floats(-5, 5), st.sampled_from([math.nan, math.inf, -math.inf, 0.0]))
FIGURES = ("difficulty", "variance", "metric", "progress", "compressed", "gap_growth", "advantage", "reward_variance")
ERRORS = ("difficulty_se", "progress_se", "gap_growth_se", "advantage_se", "reward_variance_se")
COUNTS = (0, 0, 1, 50, 4096, 10**12)


@st.composite
def courses(draw: st.DrawFn, figure: st.SearchStrategy[float]) -> tuple[np.ndarray, list[Estimates]]:
    """A prior of 1 to 6 sources and some rounds of estimates: any figures, errors not negative, counts that can be.

    Every number is one of a few that are drawn, by chance: enough for all that goes wrong to meet, and quick.
    """
    size = draw(st.integers(1, 6))
    figures = draw(st.lists(figure, min_size=1, max_size=8))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    prior = rng.uniform(0.1, 1, size)
    rounds = []
    for round_index in range(ROUNDS):
        tokens = rng.choice(COUNTS, size).astype(float)
        columns: dict[str, Any] = {name: rng.choice(figures, size) for name in FIGURES}
        columns |= {name: np.abs(rng.choice(figures, size)) for name in ERRORS}
        columns |= {"tokens": tokens, "share": tokens / max(tokens.sum(), 1.0), "epochs": rng.choice(COUNTS, size)}
        columns |= {"exhausted": rng.choice([0, 0, 1], size)}
        rounds.append(estimates_of(round_index, batches=int(rng.choice(COUNTS[:-1])), **columns))
    return prior / prior.sum(), rounds


def build(name: str, prior: np.ndarray, **dials: Any) -> Any:
    size = prior.size
    options = Options(temperature=2.0, sizes=10 * prior, reference=np.full(size, 1.0))
    return make_strategy(name, prior, dials_of(size, floor=0.25 * float(prior.min()), **dials), options)


def watch(strategy: Any, rounds: list[Estimates]) -> np.ndarray:
    """(R, S) weights after each round; what overflows on the way is no concern of ours."""
    seen = []
    for now in rounds:
        with np.errstate(all="ignore"):
            strategy.observe(now)
        seen.append(strategy.weights())
    return np.array(seen)


FOLLOWING = ("literal", "second_order")
EVERY = [(name, signal) for name in STRATEGIES for signal in (SIGNALS if name in FOLLOWING else [None])]
every = pytest.mark.parametrize(("name", "signal"), EVERY)


def dials(signal: str | None) -> dict[str, str]:
    return {} if signal is None else {"signal": signal}


@every
@settings(max_examples=25)
@given(course=courses(anything))
def test_weights_are_shares_above_the_floor_and_a_stop_moves_no_bit(name, signal, course):
    """Then the same through JSON from the third and the fifth round on, into a strategy that has seen other things."""
    prior, rounds = course
    whole = build(name, prior, **dials(signal))
    weights, states, targets = [], [], []
    for now in rounds:
        weights.append(watch(whole, [now])[0])
        states.append(json.dumps(whole.state_dict()))
        targets.append(whole.target)
        assert len(whole.reasons()) == prior.size and whole.held <= len(weights)
    for shares in (np.array(weights), np.array(targets)):
        assert np.isfinite(shares).all()
        np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=0, atol=1e-9)
        assert shares.min() >= 0
    if name == "second_order":
        assert np.min(weights) >= 0.25 * prior.min()
    for stop in (2, 4):
        resumed = build(name, prior, **dials(signal))
        watch(resumed, rounds[:1])
        resumed.load_state_dict(json.loads(states[stop]))
        assert resumed.weights().tobytes() == weights[stop].tobytes()
        assert watch(resumed, rounds[stop + 1 :]).tobytes() == np.array(weights[stop + 1 :]).tobytes()
        assert json.dumps(resumed.state_dict()) == states[-1]


@every
@settings(max_examples=25)
@given(course=courses(moderate), seed=st.integers(0, 99))
def test_sources_in_another_order_get_the_same_weights(name, signal, course, seed):
    prior, rounds = course
    order = np.random.default_rng(seed).permutation(prior.size)
    straight = watch(build(name, prior, **dials(signal)), rounds)
    permuted = watch(build(name, prior[order], **dials(signal)), [reordered(now, order) for now in rounds])
    np.testing.assert_allclose(permuted, straight[:, order], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", FOLLOWING)
@pytest.mark.parametrize("kappa", [0.0, 0.5])
@settings(max_examples=10)
@given(constant=st.floats(-50, 50), seed=st.integers(0, 999))
def test_a_constant_on_one_source_moves_no_weight(name, kappa, constant, seed):
    """Its losses of every round, item by item, through the estimator: progress is a difference."""
    rng = np.random.default_rng(seed)
    falling = 3 - 0.02 * np.arange(8)[:, None, None] * rng.uniform(0.5, 2, (1, 3, 1))
    losses = falling + rng.normal(0, 0.3, (1, 3, 40)) + rng.normal(0, 0.02, (8, 3, 40))
    prior = np.array([0.5, 0.3, 0.2])
    seen = []
    for shift in (0.0, constant):
        shifted = losses + np.array([0.0, shift, 0.0])[None, :, None]
        estimator, rounds = ProgressEstimator(3, kappa), []
        for round_index, of_sources in enumerate(shifted):
            items = panel_items(4 * round_index, 20, 40)
            sizes = 10 + items % 7
            now = estimator.observe([PanelLosses(items, row[items], sizes, 40) for row in of_sources])
            figures = {name: getattr(now, name) for name in ("difficulty", "metric", "progress", "progress_se")}
            rounds.append(replace(estimates_of(round_index, **figures), share=prior))
        seen.append(watch(build(name, prior), rounds))
    np.testing.assert_allclose(seen[1], seen[0], rtol=0, atol=1e-10)
    assert np.ptp(seen[0], axis=0).max() > 1e-5
