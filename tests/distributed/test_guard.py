"""Three real ranks, of which one is not what the others are: it is named, and on all of them."""

import json

import pytest

from tests.forked import run_ranks

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    """What the first rank was told; all were told the same."""
    path = tmp_path_factory.mktemp("guard") / "told.json"
    done = run_ranks(3, "tests.distributed.guard_worker", str(path))
    assert done.returncode == 0, done.stderr[-4000:]
    first, *others = json.loads(path.read_text())
    assert len(others) == 2 and all(other == first for other in others)
    return first


def test_the_rank_with_another_value_than_most_is_named_with_both(found):
    said = "has another vector of weights than the other ranks: [0.25, 0.75] against [0.5, 0.5]"
    most = "has another vector of weights than the other ranks: [0.5, 0.5] against [0.25, 0.75]"
    assert found["drift"] == {
        "[]": None,
        "[0]": f"rank 0 {said}",
        "[1]": f"rank 1 {said}",
        "[2]": f"rank 2 {said}",
        "[0, 1]": f"rank 2 {most}",
    }


def test_one_flipped_bit_of_a_parameter_is_seen(found):
    assert found["flipped"] == "rank 2 has another policy than the other ranks"


def test_a_rank_that_was_started_with_another_config_is_refused_by_the_key(found):
    assert found["settings"] == ("rank 1 was started with config.ppo.clip_range = 0.1, and rank 0 with 0.2")


def test_what_is_not_finite_is_named_by_network_and_rank(found):
    assert found["broken"] == ["value on rank 1", "policy on rank 2"]


def test_a_slow_rank_is_named_and_small_differences_and_short_times_are_not(found):
    """9 against the median of 4 and 4.4; 5 against the same; 0.9 s is no time."""
    ratio, line = found["slow"]
    assert ratio == pytest.approx(9 / 4.2)
    assert line == "rank 2 is slow: it takes 2.1 times as long as the others to sample; all wait for it"
    assert found["alike"] == [pytest.approx(5 / 4.2), None]
    assert found["little"] == [pytest.approx(9), None]


def test_a_rank_with_longer_responses_or_more_of_them_is_not_slow(found):
    """9 s instead of 4: 220 steps instead of 100, of few tokens; 900 tokens instead of 400, in as many steps."""
    assert found["longer"] == [pytest.approx((9 / 220) / (4 / 100)), None]
    assert found["fuller"] == [pytest.approx(1.0), None]


def test_all_ranks_give_signs_of_life_while_the_first_one_publishes_a_checkpoint(found):
    assert found["beats"] is True


def test_where_no_majority_agrees_all_values_are_told_and_nobody_is_blamed(found):
    assert found["two differ"] == "the ranks have different values of count: 0, 1, 2"
