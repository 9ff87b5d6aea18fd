"""Scores and their gradient by recomputation, for any upstream one."""

import pytest
import torch

from destruct.ops import chunked, reference
from destruct.ops.rows import LogitMap, ScoreRows
from tests.ops.problems import TOLERANCES, Census, bf16, f64, gap, problem

MAPS = [LogitMap(), LogitMap(scale=0.5), LogitMap(scale=1.3, soft_cap=5.0)]


def weighed(op, hidden, weight, rows, upstream, logit_map, chunk_rows=None):
    """(scores, d_hidden, d_weight) of the upstream-weighted sum of all three scores."""
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    scores = op(hidden, weight, rows, logit_map, chunk_rows)
    sum((given * score.double()).sum() for given, score in zip(upstream, scores, strict=True)).backward()
    return scores, hidden.grad, weight.grad


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("logit_map", MAPS)
def test_scores_and_both_gradients_match_the_float64_definition(logit_map, dtype):
    hidden, weight, rows, _ = problem(21, 507, 31, dtype)
    upstream = torch.randn(3, 21, generator=torch.Generator().manual_seed(1), dtype=f64)
    given = rows.score_rows(), upstream, logit_map
    want, *want_gradients = weighed(reference.score, hidden.double(), weight.double(), *given)
    got, *got_gradients = weighed(chunked.score, hidden, weight, *given, chunk_rows=8)
    for ours, right in zip(got, want, strict=True):
        torch.testing.assert_close(ours.double(), right, rtol=0, atol=TOLERANCES[dtype].row)
    for ours, right in zip(got_gradients, want_gradients, strict=True):
        assert gap(ours, right) <= TOLERANCES[dtype].gradient


@pytest.mark.parametrize("logit_map", MAPS)
def test_gradcheck_in_float64(logit_map):
    hidden, weight, rows, _ = problem(7, 11, 5)
    inputs = (hidden.requires_grad_(), weight.requires_grad_())
    assert torch.autograd.gradcheck(lambda h, w: chunked.score(h, w, rows.score_rows(), logit_map, 4), inputs)


def test_the_targets_logits_are_not_rounded_to_bfloat16():
    """Where many tokens share the probability, a logprob errs by a fifth at most of what bfloat16 logits make it."""
    hidden, weight, rows, _ = problem(64, 4000, 64, bf16)
    weight, rows = weight / 4, ScoreRows(rows.targets, torch.ones(64))  # logits of standard deviation 0.4
    right = reference.score(hidden.double(), weight.double(), rows).logprobs
    plain = (hidden @ weight.t()).float().log_softmax(1).gather(1, rows.targets[:, None]).squeeze(1)
    ours = chunked.score(hidden, weight, rows).logprobs
    assert (ours - right).abs().max() <= (plain - right).abs().max() / 5


def test_the_definition_is_that_of_torch_distributions():
    hidden, weight, rows, _ = problem(9, 123, 31)
    logits = hidden @ weight.t() / rows.temperature[:, None]
    said = torch.distributions.Categorical(logits=logits)
    scores = reference.score(hidden, weight, rows.score_rows())
    torch.testing.assert_close(scores.logprobs, said.log_prob(rows.targets))
    torch.testing.assert_close(scores.entropy, said.entropy())
    torch.testing.assert_close(scores.log_sum_exp, logits.exp().sum(1).log())


def test_a_ratio_of_whole_sequences_has_the_gradient_of_full_logits():
    """GSPO's: exp of the mean log ratio of a sequence, times its advantage, which no per-row loss can express."""
    hidden, weight, rows, _ = problem(12, 123, 31)
    hidden.requires_grad_(), weight.requires_grad_()

    def objective(logprobs):
        log_ratio = (logprobs - rows.old_logprobs).view(3, 4).mean(1)
        return (log_ratio.exp() * torch.tensor([1.0, -2.0, 0.5], dtype=f64)).sum()

    full = (hidden @ weight.t() / rows.temperature[:, None]).log_softmax(1).gather(1, rows.targets[:, None])
    want = torch.autograd.grad(objective(full.squeeze(1)), (hidden, weight))
    ours = chunked.score(hidden, weight, rows.score_rows(), chunk_rows=5).logprobs
    got = torch.autograd.grad(objective(ours), (hidden, weight))
    assert all(gap(g, w) <= 1e-12 for g, w in zip(got, want, strict=True))


def test_rows_that_nothing_asks_about_are_left_out_and_no_tensor_grows_with_rows_times_vocabulary():
    hidden, weight, rows, _ = problem(40, 507, 31)
    hidden.requires_grad_(), weight.requires_grad_()
    with Census() as census:
        chunked.score(hidden, weight, rows.score_rows(), chunk_rows=20).logprobs[:25].sum().backward()
    assert census.products.count((20, 31, 507)) == 4, "each chunk's logits once, and again in the backward"
    assert census.products[-2:] == [(5, 507, 31), (507, 5, 31)]
    assert census.largest <= max(20 * 507, 507 * 31)


def test_what_waits_for_the_backward_are_the_inputs_themselves():
    """An engine that has let the gathered weight go puts it back into this very tensor."""
    hidden, weight, rows, _ = problem(8, 123, 31)
    hidden.requires_grad_(), weight.requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        chunked.score(hidden, weight, rows.score_rows())
    assert [t is weight or t.data_ptr() in (hidden.data_ptr(), weight.data_ptr()) for t in kept] == [True, True]
    with torch.no_grad():
        scores = chunked.score(hidden, weight, rows.score_rows())
    assert not any(score.requires_grad for score in scores)


def test_no_rows_have_no_scores_and_a_gradient_of_zero():
    hidden, weight, _, _ = problem(3, 123, 31)
    hidden = hidden[:0].requires_grad_()
    weight.requires_grad_()
    scores = chunked.score(hidden, weight, ScoreRows(torch.zeros(0, dtype=torch.int64), torch.ones(0)))
    sum(score.sum() for score in scores).backward()
    assert hidden.grad.shape == (0, 31) and not weight.grad.any()
