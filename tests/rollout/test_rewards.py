"""Reward terms worked by hand, and what a user's own function may not do."""

import sys
import types

import pytest
import torch

from destruct.batch import PromptBatch, RolloutBatch
from destruct.config.rollout import REWARD_TERMS
from destruct.errors import DestructError
from destruct.rollout.rewards import REWARDS, Reward, RewardContext

P = 2


class Letters:
    """Token 0 is "a", 1 is "b", ..."""

    def decode(self, ids):
        return "".join(chr(97 + token) for token in ids)


def batch(responses: list[list[int]], continuations: list[list[int]], stopped: list[bool]) -> RolloutBatch:
    r = len(continuations[0])
    windows = torch.tensor([[20, 21, *row] for row in continuations])
    lengths = torch.tensor([len(row) for row in responses])
    tokens = torch.tensor([[20, 21, *row, *[25] * (r - len(row))] for row in responses])
    n = len(responses)
    prompts = PromptBatch(0, P, windows, torch.zeros(n, dtype=torch.int64), torch.arange(n))
    return RolloutBatch(prompts, tokens, torch.arange(r) < lengths[:, None], torch.tensor(stopped))


@pytest.fixture
def three() -> RolloutBatch:
    return batch(
        responses=[[1, 2, 1, 2, 1], [3, 4], [5, 5, 5, 5, 5]],
        continuations=[[1, 1, 2, 9, 9], [4, 3, 3, 0, 0], [0, 1, 2, 3, 4]],
        stopped=[False, True, False],
    )


def term(name: str, rollouts: RolloutBatch, ngram: int = 2) -> list[float]:
    return pytest.approx(REWARDS[name](rollouts, RewardContext(ngram, Letters())).tolist())


def test_repetition_is_minus_the_share_of_ngrams_seen_before(three):
    """12 21 12 21: two of four are new.  34: one of one.  55 55 55 55: one of four.  Padding is not read."""
    assert term("repetition", three) == [-0.5, 0.0, -0.75]


def test_a_response_shorter_than_an_ngram_repeats_nothing(three):
    assert term("repetition", three, ngram=6) == [0.0, 0.0, 0.0]


def test_overlap_is_unigram_f1_against_the_true_continuation(three):
    """{1,1,1,2,2} and {1,1,2,9,9} share 1,1,2: 2*3/10.  {3,4} and {4,3,3,0,0} share 2: 4/7.  Nothing shared: 0."""
    assert term("continuation_overlap", three) == [0.6, 4 / 7, 0.0]


def test_length_and_eos(three):
    assert term("length", three) == [1.0, 0.4, 1.0]
    assert term("eos", three) == [0.0, 1.0, 0.0]


def test_the_score_is_the_weighted_sum(three):
    reward = Reward({"length": 2.0, "eos": -3.0}, RewardContext(2, Letters()))
    rewarded = reward(three)
    assert rewarded.score.tolist() == pytest.approx([2.0, -2.2, 2.0])
    assert rewarded.terms.tolist() == [[1.0, 0.0], [pytest.approx(0.4), 1.0], [1.0, 0.0]]


def test_the_configs_names_are_the_tables(three):
    assert set(REWARD_TERMS) == set(REWARDS)


@pytest.fixture
def user_module(monkeypatch):
    module = types.ModuleType("my_rewards")
    monkeypatch.setitem(sys.modules, "my_rewards", module)
    return module


def test_a_users_function_gets_texts_and_its_numbers_count(three, user_module):
    seen = []

    def shout(prompts, responses, continuations):
        seen.append((prompts, responses, continuations))
        return [len(text) for text in responses]

    user_module.shout = shout
    rewarded = Reward({"my_rewards:shout": 0.5}, RewardContext(2, Letters()))(three)
    assert rewarded.score.tolist() == [2.5, 1.0, 2.5]
    assert seen == [(["uv"] * 3, ["bcbcb", "de", "fffff"], ["bbcjj", "eddaa", "abcde"])]


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ([1.0, 2.0], "2 values for 3"),
        ([0.0, float("nan"), 1.0], "nan.*'de'"),
        ([0.0, 1e39, 1.0], "1e\\+39.*'de'"),  # finite here, and infinite as a float32
        (ValueError("boom\n  and more"), r"ValueError: boom and more \(.*test_rewards.py:\d+\)"),
    ],
)
def test_a_users_function_that_misbehaves_is_named(three, user_module, returned, said):
    def wrong(prompts, responses, continuations):
        if isinstance(returned, Exception):
            raise returned
        return returned

    user_module.wrong = wrong
    reward = Reward({"my_rewards:wrong": 1.0}, RewardContext(2, Letters()))
    with pytest.raises(DestructError, match=said) as error:
        reward(three)
    assert "my_rewards:wrong" in error.value.problem


def test_a_function_that_is_not_there_is_found_out_at_build(user_module):
    for path in ("my_rewards:absent", "no_such_module:f"):
        with pytest.raises(DestructError, match=path):
            Reward({path: 1.0}, RewardContext(2, Letters()))
