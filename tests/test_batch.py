"""The typed batches: where prompts, continuations and documents stand in a row, by hand; what is refused."""

import dataclasses

import pytest
import torch

from destruct.batch import PromptBatch, RolloutBatch, TokenWindows

P, R = 3, 4


def prompts() -> PromptBatch:
    """Lengths 3 and 4, 1 and 0, 2 and 3; 90 and above is padding."""
    windows = torch.tensor([[1, 2, 3, 4, 5, 6, 7], [91, 92, 11, 93, 94, 95, 96], [97, 21, 22, 23, 24, 25, 98]])
    lengths = torch.tensor([3, 1, 2]), torch.tensor([4, 0, 3])
    return PromptBatch(0, P, windows, *lengths, source=torch.tensor([0, 1, 0]), sample=torch.arange(3))


def test_positions_begin_again_with_the_prompt_and_go_on_through_the_response():
    assert prompts().positions.tolist() == [[0, 1, 2, 3, 4, 5, 6], [0, 1, 0, 1, 2, 3, 4], [0, 0, 1, 2, 3, 4, 5]]
    whole = PromptBatch.full(0, P, prompts().windows, torch.zeros(3), torch.arange(3))
    assert whole.positions.tolist() == [[*range(7)]] * 3


def test_prompts_and_continuations_come_without_their_padding():
    batch = prompts()
    assert batch.prompt_ids() == [[1, 2, 3], [11], [21, 22]]
    assert batch.continuation_ids() == [[4, 5, 6, 7], [], [23, 24, 25]]
    assert batch.continuation_mask.tolist() == [[True] * 4, [False] * 4, [True] * 3 + [False]]
    assert batch.real_tokens == 13
    assert batch.select(torch.tensor([2, 1])).prompt_ids() == [[21, 22], [11]]


def test_a_response_follows_the_prompt_where_the_continuation_would():
    batch = prompts()
    responses, mask = torch.tensor([[31, 99, 99, 99], [32, 33, 34, 35], [36, 37, 99, 99]]), [1, 4, 2]
    rollouts = RolloutBatch(
        batch, responses, torch.arange(R) < torch.tensor(mask)[:, None], torch.zeros(3) > 0, teacher_forced=False
    )
    assert rollouts.response_ids() == [[31], [32, 33, 34, 35], [36, 37]]
    assert rollouts.tokens[1].tolist() == [91, 92, 11, 32, 33, 34, 35]


def test_every_token_behind_another_one_of_its_document_is_predicted_from_it():
    """Documents of 3 and 2 tokens and a padding of two documents of one; a window of one document.

    Token 5 begins the second document, so neither it nor the padding is a target; states 0, 1, 3 and 7 to 12 predict.
    """
    tokens = torch.tensor([[2, 3, 4, 5, 6, 90, 91], [11, 12, 13, 14, 15, 16, 17]])
    windows = TokenWindows(tokens, torch.tensor([[0, 1, 2, 0, 1, 0, 0], [*range(7)]]))
    assert windows.rows.tolist() == [0, 1, 3, *range(7, 13)]
    assert windows.targets.tolist() == [3, 4, 6, *range(12, 18)]
    assert windows.target_counts.tolist() == [3, 6]
    assert len(windows.select(torch.tensor([1]))) == 1
    assert torch.equal(TokenWindows.full(tokens).positions, torch.arange(7).expand(2, 7))
    empty = TokenWindows.full(tokens).select(torch.tensor([], dtype=torch.int64))
    assert len(empty.rows) == len(empty.targets) == 0


@pytest.mark.parametrize("positions", [[1, 2, 3], [0, 2, 3], [0, 1, 1], [0, 1, -1]])
def test_positions_that_are_no_documents_are_refused(positions):
    with pytest.raises(ValueError, match="must begin at 0"):
        TokenWindows(torch.zeros(1, 3, dtype=torch.int64), torch.tensor([positions]))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt_lengths": torch.tensor([3, 0, 2])}, "prompt_lengths holds 0 to 3; 1 to 3 are possible"),
        ({"prompt_lengths": torch.tensor([3, 4, 2])}, "prompt_lengths holds 2 to 4; 1 to 3 are possible"),
        ({"continuation_lengths": torch.tensor([5, 0, 0])}, "continuation_lengths holds 0 to 5; 0 to 4 are possible"),
        ({"continuation_lengths": torch.tensor([1, 2])}, r"continuation_lengths is \(2,\); it must be \(3,\)"),
    ],
)
def test_lengths_that_do_not_fit_the_row_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(prompts(), **changes)
