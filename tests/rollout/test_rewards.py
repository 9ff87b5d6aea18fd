"""Reward terms worked by hand, and their weighted sum."""

import pytest
import torch

from destruct.batch import PromptBatch, RewardedBatch, RolloutBatch
from destruct.engine.topology import Topology
from destruct.minibatch import Minibatch
from destruct.rollout.rewards import REWARDS, Reward, RewardContext, Term

P = 2
ALONE = Topology(0, 1, torch.device("cpu"))


class Letters:
    """Token 0 is "a", 1 is "b", ..."""

    def decode(self, ids):
        return "".join(chr(97 + token) for token in ids)


def batch(
    responses: list[list[int]], continuations: list[list[int]], stopped: list[bool], teacher_forced: bool = False
) -> RolloutBatch:
    r = len(continuations[0])
    windows = torch.tensor([[20, 21, *row] for row in continuations])
    lengths = torch.tensor([len(row) for row in responses])
    padded = torch.tensor([[*row, *[25] * (r - len(row))] for row in responses])
    n = len(responses)
    prompts = PromptBatch.full(0, P, windows, torch.zeros(n, dtype=torch.int64), torch.arange(n) + 100)
    mask = torch.arange(r) < lengths[:, None]
    return RolloutBatch(prompts, padded, mask, torch.tensor(stopped), teacher_forced)


def rewarded(weights: dict[str, float], terms: dict[str, Term], rollouts: RolloutBatch, models=None) -> RewardedBatch:
    reward = Reward(weights, terms, models or {}, RewardContext(2, Letters()))
    return reward([Minibatch((rollouts,), 0, 0, 0)], ALONE)[0].micro_batches[0]


@pytest.fixture
def three() -> RolloutBatch:
    return batch(
        responses=[[1, 2, 1, 2, 1], [3, 4], [5, 5, 5, 5, 5]],
        continuations=[[1, 1, 2, 9, 9], [4, 3, 3, 0, 0], [0, 1, 2, 3, 4]],
        stopped=[False, True, False],
    )


def term(name: str, rollouts: RolloutBatch, ngram: int = 2) -> list[float]:
    return pytest.approx(REWARDS[name].measure(rollouts, RewardContext(ngram, Letters())).tolist())


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


def test_match_is_one_where_the_token_is_the_texts_own(three):
    """12121 against 11299: the first; 34... against 43300: none (padding is masked out later); 55555: none."""
    assert REWARDS["match"].measure(three, RewardContext(2, Letters()))[:, :2].tolist() == [[1, 0], [0, 0], [0, 0]]


def test_the_score_of_a_whole_response_is_the_weighted_sum_and_paid_with_its_last_token(three):
    got = rewarded({"length": 2.0, "eos": -3.0}, REWARDS, three)
    assert got.score.tolist() == pytest.approx([2.0, -2.2, 2.0])
    assert got.terms.tolist() == [[1.0, 0.0], [pytest.approx(0.4), 1.0], [1.0, 0.0]]
    paid = torch.tensor([[0, 0, 0, 0, 2.0], [0, -2.2, 0, 0, 0], [0, 0, 0, 0, 2.0]])
    torch.testing.assert_close(got.rewards, paid)


def test_a_term_per_token_is_paid_with_each_and_averaged_where_every_token_is_an_episode():
    """Rows of 3 tokens, 2 and 1 of them right: rewards of weight 1/2; the score is their mean, the term the share."""
    rollouts = batch([[1, 2, 3], [4, 5, 6]], [[1, 9, 3], [4, 9, 9]], [False, False], teacher_forced=True)
    got = rewarded({"match": 0.5}, REWARDS, rollouts)
    assert got.rewards.tolist() == [[0.5, 0, 0.5], [0.5, 0, 0]]
    assert got.score.tolist() == pytest.approx([1 / 3, 1 / 6])
    assert got.terms[:, 0].tolist() == pytest.approx([2 / 3, 1 / 3])


def test_a_term_of_a_model_keeps_its_place_and_padding_is_not_paid(three):
    """Order of the weights, not of the tables; -1 per token, of 5, 2 and 5 tokens, sums up in generated text."""
    nats = Term(lambda rollouts, _: torch.full(rollouts.mask.shape, -1.0), per_token=True)
    got = rewarded({"nats": 2.0, "eos": 1.0}, {"eos": REWARDS["eos"]}, three, models={"nats": nats})
    assert got.terms.tolist() == [[-1, 0], [-1, 1], [-1, 0]]
    assert got.score.tolist() == [-10.0, -3.0, -10.0]
    assert got.rewards[1].tolist() == [-2.0, -1.0, 0, 0, 0]
