"""A strategy's state where sources came, went or changed places."""

import json
from typing import Any

import numpy as np
import pytest

from destruct.curriculum.states import laid_out_anew
from destruct.curriculum.strategies import Options, make_strategy
from tests.curriculum.rounds import dials_of, estimates_of

MOVING = ["literal", "second_order", "doremi", "odm"]


def build(name: str, prior: Any) -> Any:
    options = Options(sizes=np.ones(len(prior)), reference=np.zeros(len(prior)))
    return make_strategy(name, np.array(prior), dials_of(len(prior)), options)


def run_on(strategy: Any, sources: list[int], rounds: range) -> list[np.ndarray]:
    """Weights over rounds of figures that belong to the sources, wherever they stand."""
    seen = []
    for round_index in rounds:
        rng = np.random.default_rng(round_index)
        difficulty, progress, tokens = rng.uniform(1, 4, 9), rng.normal(0.02, 0.05, 9), rng.uniform(1, 9, 9)
        rows = {"difficulty": difficulty, "metric": difficulty, "progress": progress, "tokens": tokens}
        rows |= {"share": tokens / tokens[sources].sum()}
        strategy.observe(estimates_of(round_index, batches=8, **{name: x[sources] for name, x in rows.items()}))
        seen.append(strategy.weights())
    return seen


def state_of(name: str) -> dict[str, Any]:
    strategy = build(name, [0.4, 0.3, 0.2, 0.1])
    run_on(strategy, [0, 1, 2, 3], range(9))
    return json.loads(json.dumps(strategy.state_dict()))


def test_shares_levels_and_figures_by_hand():
    """Two of three sources stay, in exchanged places, with .2 and .6; the new one begins with its .2 of the prior."""
    state = {
        "shares": {"w": [0.6, 0.2, 0.2]},
        "figures": {"v": [1.0, 2.0, 3.0]},
        "levels": {"r": [10.0, 20.0, 40.0]},
        "history": [[1, 2]],
        "counts": {"turns": 5},
    }
    fresh = {
        "shares": {"w": [0.4, 0.2, 0.4]},
        "figures": {"v": [0.0, 0.0, 0.0]},
        "levels": {"r": [0.0, 0.0, 0.0]},
        "history": [],
        "counts": {"turns": 1},
    }
    anew = laid_out_anew(state, fresh, [1, None, 0])
    np.testing.assert_allclose(anew["shares"]["w"], [0.2, 0.2, 0.6], rtol=1e-15)
    assert anew["figures"]["v"] == [2.0, 0.0, 1.0]
    assert anew["levels"]["r"] == [20.0, 15.0, 10.0]
    assert anew["history"] == [] and anew["counts"] == {"turns": 5}
    assert state["shares"]["w"] == [0.6, 0.2, 0.2] and fresh["levels"]["r"] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("name", MOVING)
def test_a_new_source_gets_its_prior_share_exactly_and_the_others_keep_their_ratios(name):
    state, fresh = state_of(name), build(name, [0.25, 0.3, 0.15, 0.2, 0.1]).state_dict()
    anew = laid_out_anew(state, fresh, [2, 0, None, 3, 1])
    for kind, shares in anew["shares"].items():
        before = np.array(state["shares"][kind])[[2, 0, 3, 1]]
        kept = np.array(shares)[[0, 1, 3, 4]]
        assert shares[2] == 0.15
        np.testing.assert_allclose(kept, before / before.sum() * 0.85, rtol=1e-13)
        assert sum(shares) == pytest.approx(1, abs=1e-14)
    for figures in anew["figures"].values():
        assert figures[2] == 0


@pytest.mark.parametrize("name", MOVING)
def test_the_share_of_one_that_is_gone_falls_to_the_rest(name):
    state = state_of(name)
    anew = laid_out_anew(state, build(name, [0.5, 0.3, 0.2]).state_dict(), [0, 1, 3])
    for kind, shares in anew["shares"].items():
        kept = np.array(state["shares"][kind])[[0, 1, 3]]
        np.testing.assert_allclose(shares, kept / kept.sum(), rtol=1e-14)


@pytest.mark.parametrize("name", MOVING)
def test_another_order_alone_moves_no_bit(name):
    state, order = state_of(name), [3, 1, 0, 2]
    anew = laid_out_anew(state, build(name, [0.1, 0.3, 0.4, 0.2]).state_dict(), order)
    for kind in ("shares", "figures", "levels"):
        for key, values in state[kind].items():
            assert anew[kind][key] == [values[place] for place in order]
    assert anew["counts"] == state["counts"] and anew["history"] == []


@pytest.mark.parametrize("name", MOVING)
def test_another_order_and_back_goes_on_as_if_nothing_had_been(name):
    """Through the strategy itself, a round later; only sums in another order may differ in their last bit."""
    straight, exchanged = build(name, [0.4, 0.3, 0.2, 0.1]), build(name, [0.1, 0.3, 0.4, 0.2])
    state, order = state_of(name), [3, 1, 0, 2]
    straight.load_state_dict(state)
    exchanged.load_state_dict(laid_out_anew(state, build(name, [0.1, 0.3, 0.4, 0.2]).state_dict(), order))
    a, b = run_on(straight, [0, 1, 2, 3], range(9, 14)), run_on(exchanged, order, range(9, 14))
    np.testing.assert_allclose(np.array(b), np.array(a)[:, order], rtol=0, atol=1e-13)
    assert np.ptp(a, axis=0).max() > 1e-3


@pytest.mark.parametrize("name", MOVING)
def test_a_new_source_is_drawn_from_the_first_batch_on(name):
    """Its weight before any round is its prior share, to the last bits that a sum of 1 costs."""
    resumed = build(name, [0.25, 0.3, 0.15, 0.2, 0.1])
    resumed.load_state_dict(laid_out_anew(state_of(name), resumed.state_dict(), [2, 0, None, 3, 1]))
    assert resumed.weights()[2] == pytest.approx(0.15, abs=1e-15)
    assert resumed.weights().sum() == pytest.approx(1, abs=1e-14)


def test_a_bandit_ranks_a_new_source_in_the_middle():
    """ODM counts rewards up without end: from 0 a new source would be starved for as long as the run has gone."""
    state = state_of("odm")
    anew = laid_out_anew(state, build("odm", [0.2] * 5).state_dict(), [0, 1, 2, 3, None])
    rewards = state["levels"]["rewards"]
    assert anew["levels"]["rewards"][4] == pytest.approx(np.mean(rewards), rel=1e-15)
    resumed = build("odm", [0.2] * 5)
    resumed.load_state_dict(anew)
    after = run_on(resumed, [0, 1, 2, 3, 4], range(9, 10))[0]
    assert after.min() < after[4] < after.max()


def test_a_new_source_is_as_idle_as_the_others_in_the_mean():
    """Of the others the first is learnt and two are not; without evidence the new one is explored less than the first
    and more than those."""
    before, resumed = build("second_order", [1 / 3] * 3), build("second_order", [0.25] * 4)
    for round_index in range(12):
        w = before.weights()
        before.observe(estimates_of(round_index, tokens=1000 * w, share=w, progress=[0.1, 0.0, 0.0]))
    anew = laid_out_anew(before.state_dict(), resumed.state_dict(), [0, 1, 2, None])
    assert anew["levels"]["idle"][3] == pytest.approx(np.mean(anew["levels"]["idle"][:3]), rel=1e-15)
    resumed.load_state_dict(anew)
    w = resumed.weights()
    resumed.observe(estimates_of(12, tokens=1000 * w, share=w, progress=[0.0, 0.0, 0.0, 0.0]))
    assert resumed.target[0] > resumed.target[3] > resumed.target[1] > 0


def test_where_all_that_stay_had_no_share_they_divide_it_equally():
    """Literal weights can be 0."""
    state = {"shares": {"w": [0.0, 0.0, 1.0]}, "figures": {}, "levels": {}, "history": [], "counts": {}}
    anew = laid_out_anew(state, {"shares": {"w": [0.5, 0.5]}, "figures": {}, "levels": {}}, [0, 1])
    assert anew["shares"]["w"] == [0.5, 0.5]
