"""What holds for every problem, not only for those that somebody thought of."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from destruct.ops import chunked, reference, row_blocks
from destruct.ops import gradients as gradients_module
from destruct.ops.rows import KL_NAMES, SUM_NAMES, LogitMap, LossCoefficients
from tests.ops.problems import PLAIN, bf16, differentiate, f64, gap, problem, solve

shapes = {
    "count": st.integers(0, 40),
    "vocab": st.integers(2, 90),
    "width": st.integers(1, 12),
    "seed": st.integers(0, 10**6),
}
coefficients = st.builds(
    LossCoefficients,
    clip_low=st.floats(0.01, 0.9),
    clip_high=st.floats(0.01, 2.0),
    kl_coef=st.floats(0.0, 2.0),
    kl=st.sampled_from(KL_NAMES),
    entropy_coef=st.sampled_from([0.0, 0.05, -0.05]),
    dual_clip=st.none() | st.floats(1.01, 4.0),
)
logit_maps = st.builds(LogitMap, scale=st.floats(0.05, 3.0), soft_cap=st.none() | st.floats(1.0, 40.0))


@settings(max_examples=100)
@given(
    **shapes,
    chunk_rows=st.integers(1, 45),
    block_bytes=st.integers(1, 20_000),
    given_coefficients=coefficients,
    logit_map=logit_maps,
)
def test_chunked_is_the_definition(count, vocab, width, seed, chunk_rows, block_bytes, given_coefficients, logit_map):
    """Whatever the chunks, and the blocks of rows and of the weight's gradient inside them."""
    drawn = problem(count, vocab, width, seed=seed, logit_map=logit_map)
    want, *want_gradients = solve(reference.policy_loss, drawn, given_coefficients, logit_map=logit_map)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_blocks, "BLOCK_BYTES", block_bytes)
        options = {"logit_map": logit_map, "chunk_rows": chunk_rows}
        got, *gradients = solve(chunked.policy_loss, drawn, given_coefficients, **options)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)
    for ours, right in zip(gradients, want_gradients, strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-9, atol=1e-11)


@settings(max_examples=40)
@given(
    **shapes | {"vocab": st.integers(16, 90), "width": st.integers(4, 12)},  # of fewer, terms cancel to nothing
    chunk_rows=st.integers(1, 45),
    block_bytes=st.integers(1, 4000),
)
def test_a_weight_gradient_added_up_in_parts_is_that_of_one_chunk(count, vocab, width, seed, chunk_rows, block_bytes):
    """bfloat16, where parts of the head are added up in float32: the parts must meet, and rounding alone may differ."""
    drawn = problem(count, vocab, width, bf16, seed=seed)
    _, d_hidden, d_weight = solve(chunked.policy_loss, drawn, PLAIN, chunk_rows=45)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradients_module, "BLOCK_BYTES", block_bytes)
        patch.setattr(row_blocks, "BLOCK_BYTES", block_bytes)
        _, d_same, d_parts = solve(chunked.policy_loss, drawn, PLAIN, chunk_rows=chunk_rows)
    assert gap(d_same, d_hidden) <= 1e-2 and gap(d_parts, d_weight) <= 1e-2


@settings(max_examples=40)
@given(**shapes, given_coefficients=coefficients)
def test_a_gradient_of_logits_sums_to_zero_over_the_vocabulary(count, vocab, width, seed, given_coefficients):
    """Adding one number to every logit of a row changes nothing: a head whose rows all gain the same vector."""
    hidden, weight, rows, states = problem(count, vocab, width, seed=seed)
    anchor = states if given_coefficients.exact_kl else None
    _, _, d_weight = differentiate(chunked.policy_loss, hidden, weight, rows, given_coefficients, anchor)
    assert d_weight.sum(0).abs().max() <= 1e-11 * max(1.0, float(d_weight.abs().sum()))


@settings(max_examples=40)
@given(**shapes, kl=st.sampled_from(KL_NAMES[1:]), low=st.floats(0.0, 1.0), high=st.floats(0.0, 1.0))
def test_loss_and_gradient_are_linear_in_beta(count, vocab, width, seed, kl, low, high):
    drawn = problem(count, vocab, width, seed=seed)

    def at(beta):
        out, *gradients = solve(chunked.policy_loss, drawn, dataclasses.replace(PLAIN, kl=kl, kl_coef=beta))
        return [out.loss.detach(), *gradients]

    for first, second, both, none in zip(at(low), at(high), at(low + high), at(0.0), strict=True):
        torch.testing.assert_close(first + second - none, both, rtol=1e-9, atol=1e-10)


@settings(max_examples=40)
@given(**shapes, kl=st.sampled_from(["k2", "k3", "exact", "exact_forward"]))
def test_no_kl_is_negative_but_k1(count, vocab, width, seed, kl):
    out, *_ = solve(chunked.policy_loss, problem(count, vocab, width, seed=seed), dataclasses.replace(PLAIN, kl=kl))
    sums = dict(zip(SUM_NAMES, out.sums.tolist(), strict=True))
    assert min(sums["kl_old_k3"], sums["kl_reference_k3"], sums["kl_reference_exact"]) >= -1e-12


@settings(max_examples=30)
@given(**shapes, shift=st.floats(-1e4, 1e4))
def test_one_number_added_to_every_logit_changes_nothing_but_the_log_sum_exp(count, vocab, width, seed, shift):
    hidden, weight, rows, _ = problem(count, vocab, width, seed=seed)
    wider = torch.cat([hidden, torch.ones(count, 1, dtype=f64)], 1)
    before = chunked.score(hidden, weight, rows.score_rows())
    after = chunked.score(wider, torch.cat([weight, torch.full((vocab, 1), shift, dtype=f64)], 1), rows.score_rows())
    torch.testing.assert_close(after.logprobs, before.logprobs, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(after.entropy, before.entropy, rtol=1e-9, atol=1e-9)
    moved = shift / rows.temperature
    assert gap(after.log_sum_exp, before.log_sum_exp + moved) <= 1e-9
