"""What a user's own reward function gets, and what it may not do."""

import sys
import types

import pytest
import torch

from destruct.errors import DestructError
from destruct.rollout.user_terms import user_term
from tests.rollout.test_rewards import batch, rewarded


@pytest.fixture
def module(monkeypatch):
    module = types.ModuleType("my_rewards")
    monkeypatch.setitem(sys.modules, "my_rewards", module)
    return module


@pytest.fixture
def three():
    """Samples 100, 101, 102."""
    return batch(
        responses=[[1, 2, 1, 2, 1], [3, 4], [5, 5, 5, 5, 5]],
        continuations=[[1, 1, 2, 9, 9], [4, 3, 3, 0, 0], [0, 1, 2, 3, 4]],
        stopped=[False, True, False],
    )


def judged(name: str, rollouts, weight: float = 1.0):
    path = f"my_rewards:{name}"
    return rewarded({path: weight}, {path: user_term(path)}, rollouts)


def test_a_function_gets_texts_and_its_numbers_count(three, module):
    seen = []

    def shout(prompts, responses, continuations):
        seen.append((prompts, responses, continuations))
        return [len(text) for text in responses]

    module.shout = shout
    assert judged("shout", three, 0.5).score.tolist() == [2.5, 1.0, 2.5]
    assert seen == [(["uv"] * 3, ["bcbcb", "de", "fffff"], ["bbcjj", "eddaa", "abcde"])]


def test_a_function_per_token_gets_the_text_of_each_and_pays_each(three, module):
    seen = []

    def vowels(prompts, responses, continuations):
        seen.append((prompts, responses, continuations))
        return [[float(token in "ae") for token in response] for response in responses]

    vowels.per_token = True
    module.vowels = vowels
    got = judged("vowels", three)
    assert got.rewards.tolist() == [[0.0] * 5, [0.0, 1.0, 0, 0, 0], [0.0] * 5]
    assert got.terms.tolist() == [[0.0], [0.5], [0.0]]
    assert seen[0][1] == [["b", "c", "b", "c", "b"], ["d", "e"], ["f"] * 5]
    assert seen[0][2][1] == ["e", "d", "d", "a", "a"]


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ([1.0, 2.0], "gave 2 values for the 3 responses of samples 100, 101, 102"),
        ([0.0, float("nan"), 1.0], "gave nan for sample 101, the response 'de'"),
        ([0.0, 1e39, 1.0], "gave 1e+39 for sample 101, the response 'de'"),  # finite here, and infinite as a float32
        (None, "raised TypeError: 'NoneType' object is not iterable"),
    ],
)
def test_a_function_that_returns_what_it_should_not_is_named_with_the_sample(three, module, returned, said):
    module.wrong = lambda prompts, responses, continuations: returned
    with pytest.raises(DestructError) as error:
        judged("wrong", three)
    assert error.value.problem.startswith(f"reward term 'my_rewards:wrong' {said}")


def test_a_function_that_raises_is_named_with_its_line_and_the_sample_it_fails_on(three, module):
    def wrong(prompts, responses, continuations):
        if "de" in responses:
            raise ValueError("boom\n  and more")
        return [0.0] * len(responses)

    module.wrong = wrong
    with pytest.raises(DestructError, match=r"raised ValueError: boom and more \(.*:\d+\) on sample 101\n"):
        judged("wrong", three)


def test_a_function_that_fails_on_several_together_names_them_all(three, module):
    def wrong(prompts, responses, continuations):
        return [1 / (len(responses) < 3)] * len(responses)

    module.wrong = wrong
    with pytest.raises(DestructError, match="ZeroDivisionError.* on samples 100, 101, 102 together\n"):
        judged("wrong", three)


def test_a_function_per_token_that_leaves_one_out_is_named_with_the_sample(three, module):
    def short(prompts, responses, continuations):
        return [[0.0] * 5, [0.0], [0.0] * 5]

    short.per_token = True
    module.short = short
    with pytest.raises(DestructError, match="gave 1 values for the 2 tokens of sample 101"):
        judged("short", three)


def test_an_empty_micro_batch_asks_nothing(three, module):
    module.never = lambda *texts: 1 / 0
    assert judged("never", three.select(torch.zeros(0, dtype=torch.int64))).score.tolist() == []


def test_a_function_that_is_not_there_is_found_out_at_once(module):
    for path in ("my_rewards:absent", "no_such_module:f"):
        with pytest.raises(DestructError, match=path):
            user_term(path)
