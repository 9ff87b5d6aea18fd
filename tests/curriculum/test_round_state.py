"""A curriculum's state between two rounds: through JSON to the last bit, and over to other sources by their names."""

import json

import numpy as np
import pytest

from destruct.curriculum.estimates import Estimates, as_columns
from destruct.curriculum.round import Curriculum
from destruct.curriculum.strategies import STRATEGIES
from tests.curriculum.networks import engines, learn, source
from tests.curriculum.rounds_of import SHARES, curriculum, one_round

EPOCHS = np.array([1.5, 0.2, 2.0])


def batch(seed: int, sources: int = 3) -> tuple[np.ndarray, float, np.ndarray]:
    """Tokens, passes and the sums over eight rollouts of each source, whose scores and |A| are random."""
    rng = np.random.default_rng(seed)
    scores, sizes = rng.normal(1, 2, (sources, 8)), rng.uniform(0.2, 1.5, (sources, 8))
    columns = [scores, np.ones_like(scores), scores**2, scores**3, scores**4, sizes, sizes**2]
    return rng.integers(10, 99, sources), float(rng.uniform(0.5, 2)), np.stack([x.sum(1) for x in columns], axis=1)


def train(rounds: Curriculum, policy, frozen, times: int, places: list[int]) -> None:
    """Rounds and batches in turn, for sources that stand at `places` of SHARES."""
    for _ in range(times):
        one_round(rounds, policy, frozen, EPOCHS[places])
        learn(policy)
        count(rounds, rounds.rounds, places)


def count(rounds: Curriculum, seed: int, places: list[int]) -> None:
    tokens, passes, feedback = batch(seed)
    rounds.count(tokens[places], passes, feedback[places])


def through_json(before: Curriculum, after: Curriculum) -> None:
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))


def assert_alike(got: Estimates, want: Estimates) -> None:
    for name, x in as_columns(want).items():
        np.testing.assert_array_equal(as_columns(got)[name], x, err_msg=name)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("rounds_before", [1, 4])
def test_a_state_taken_between_two_rounds_continues_bit_for_bit(strategy, rounds_before):
    """Two of three batches of a window are counted; into a curriculum that has already seen something else."""
    (policy, frozen), all_of_it, resumed = engines(), curriculum(strategy), curriculum(strategy)
    train(resumed, policy, frozen, 1, [0, 1, 2])
    train(all_of_it, policy, frozen, rounds_before, [0, 1, 2])
    count(all_of_it, 100, [0, 1, 2])
    through_json(all_of_it, resumed)
    assert resumed.weights.tobytes() == all_of_it.weights.tobytes()
    assert resumed.strategy.target.tobytes() == all_of_it.strategy.target.tobytes()
    for r in range(3):
        for each in (all_of_it, resumed):
            count(each, 200 + r, [0, 1, 2])
        got, want = (one_round(each, policy, frozen, EPOCHS) for each in (resumed, all_of_it))
        assert_alike(got, want)
        assert want.batches == (3 if r == 0 else 1) and np.isfinite(want.reward_variance_se).all()
        assert resumed.weights.tobytes() == all_of_it.weights.tobytes()
        assert resumed.strategy.reasons() == all_of_it.strategy.reasons()
        learn(policy)
    assert json.dumps(resumed.state_dict()) == json.dumps(all_of_it.state_dict())
    assert resumed.probe_share == all_of_it.probe_share > 0
    assert resumed.rounds == rounds_before + 3


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_another_order_of_the_sources_changes_no_figure_of_any(strategy):
    """Bit for bit by name; later weights up to the rounding of sums that run in another order."""
    order = [2, 0, 1]
    names = list(SHARES)
    (policy, frozen), straight = engines(), curriculum(strategy)
    train(straight, policy, frozen, 5, [0, 1, 2])
    turned = curriculum(strategy, shares={names[k]: SHARES[names[k]] for k in order})
    through_json(straight, turned)
    assert turned.weights.tobytes() == straight.weights[order].tobytes()
    assert turned.strategy.target.tobytes() == straight.strategy.target[order].tobytes()
    assert turned.significant.tolist() == straight.significant[order].tolist()
    for r in range(2):
        got, want = one_round(turned, policy, frozen, EPOCHS[order]), one_round(straight, policy, frozen, EPOCHS)
        for name, x in as_columns(want).items():
            x = x[order] if isinstance(x, np.ndarray) else x
            np.testing.assert_array_equal(as_columns(got)[name], x, err_msg=name)
        np.testing.assert_allclose(turned.weights, straight.weights[order], rtol=0, atol=1e-13)
        learn(policy)
        for each, places in ((turned, order), (straight, [0, 1, 2])):
            count(each, 300 + r, places)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_source_that_comes_starts_at_its_share_and_is_known_after_three_rounds(strategy):
    """A fifth for the new one, in the middle; the others divide four fifths as they did before."""
    shares = {"runs": 0.4, "new": 0.2, "noise": 0.2, "few": 0.2}
    held_out = {"runs": source(0, 30), "noise": source(1, 14), "few": source(2, 6), "new": source(3, 20)}
    (policy, frozen), before = engines(), curriculum(strategy)
    train(before, policy, frozen, 5, [0, 1, 2])
    after = curriculum(strategy, shares, held_out)
    fresh = after.weights
    through_json(before, after)
    if strategy in ("uniform", "static", "temperature"):
        assert after.weights.tobytes() == fresh.tobytes(), "the config's, whatever was before"
    else:
        own = fresh[1]
        kept = before.weights * (1 - own)
        np.testing.assert_allclose(after.weights, [kept[0], own, kept[1], kept[2]], rtol=1e-12)
    assert after.significant.tolist() == np.insert(before.significant, 1, 0).tolist()
    for r in range(3):
        got, want = one_round(after, policy, frozen), one_round(before, policy, frozen)
        assert got.round_index == want.round_index == 5 + r
        for name in ("difficulty", "progress", "progress_se", "advantage", "reward_variance", "tokens"):
            assert getattr(got, name)[[0, 2, 3]].tobytes() == getattr(want, name).tobytes(), name
        assert np.isfinite(got.difficulty[1])
        assert np.isfinite(got.progress_se[1]) == (r == 2)
        assert abs(after.weights.sum() - 1) < 1e-12
        learn(policy)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_share_of_a_source_that_goes_falls_to_the_others_as_they_stand(strategy):
    (policy, frozen), before = engines(), curriculum(strategy)
    train(before, policy, frozen, 5, [0, 1, 2])
    after = curriculum(strategy, shares={"runs": 0.5, "few": 0.5})
    fresh = after.weights
    through_json(before, after)
    if strategy in ("uniform", "static", "temperature"):
        assert after.weights.tobytes() == fresh.tobytes()
    else:
        left = before.weights[[0, 2]]
        np.testing.assert_allclose(after.weights, left / left.sum(), rtol=1e-12)
    got, want = one_round(after, policy, frozen, EPOCHS[[0, 2]]), one_round(before, policy, frozen, EPOCHS)
    for name in ("difficulty", "progress", "progress_se", "gap_growth", "advantage", "reward_variance", "tokens"):
        assert getattr(got, name).tobytes() == getattr(want, name)[[0, 2]].tobytes(), name
    np.testing.assert_allclose(got.share, want.share[[0, 2]] / want.share[[0, 2]].sum(), rtol=1e-14)


def test_a_new_sources_share_is_that_of_the_spans_in_which_it_was_there():
    """30 tokens each of three sources a round, then 30 each of four; after 16 rounds progress spans three of them.

    The new source comes in the middle of the 14th and is there in the last two: 60 of 240 tokens.  The others had 30 of
    90 in the first and 60 of 240 in the rest: 90 of 330.  In the first the new one's 30 tokens are left out.
    """
    (policy, frozen), before = engines(), curriculum()
    for _ in range(13):
        one_round(before, policy, frozen)
        before.count(np.full(3, 30.0), 1.0)
    held_out = {"runs": source(0, 30), "noise": source(1, 14), "few": source(2, 6), "new": source(3, 20)}
    after = curriculum(shares=dict.fromkeys(("runs", "noise", "few", "new"), 0.25), held_out=held_out)
    through_json(before, after)
    for r in range(3):
        if r:
            after.count(np.full(4, 30.0), 1.0)
        else:
            after.count(np.array([0.0, 0.0, 0.0, 30.0]), 1.0)
            again = curriculum(shares=dict.fromkeys(after.names, 0.25), held_out=held_out)
            through_json(after, again)
            after = again
        estimates = one_round(after, policy, frozen)
        assert estimates.tokens.tolist() == [30.0] * 4
        learn(policy)
    assert np.isfinite(estimates.progress_se).all()
    np.testing.assert_allclose(estimates.share, [90 / 330] * 3 + [60 / 240], rtol=1e-14)
