"""Where logits, rows or memory are unusual."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from destruct.ops import chunked, reference
from destruct.ops.rows import LogitMap, LossRows, ScoreRows
from tests.ops.problems import FULL, PLAIN, bf16, differentiate, f32, f64, gap, problem, solve

both = pytest.mark.parametrize("implementation", [reference, chunked])


@both
@pytest.mark.parametrize("dtype", [f64, f32, bf16])
def test_logits_of_minus_infinity(implementation, dtype):
    """A token that cannot come: nothing changes for the others, and its own logprob is -inf."""
    hidden, weight, rows, _ = problem(12, 123, 31, dtype)
    hidden = hidden.abs()
    ruled_out = torch.cat([weight, torch.full((5, 31), -torch.inf, dtype=dtype)])
    want = implementation.score(hidden, weight, rows.score_rows())
    got = implementation.score(hidden, ruled_out, rows.score_rows())
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    last = ScoreRows(rows.targets * 0 + 127, rows.temperature)
    assert torch.isneginf(implementation.score(hidden, ruled_out, last).logprobs).all()
    inputs = hidden.requires_grad_(), ruled_out.requires_grad_()
    loss = implementation.policy_loss(*inputs, rows, FULL["k2"]).loss
    (d_weight,) = torch.autograd.grad(loss, ruled_out)
    plain = weight.clone().requires_grad_()
    (right,) = torch.autograd.grad(implementation.policy_loss(hidden, plain, rows, FULL["k2"]).loss, plain)
    torch.testing.assert_close(d_weight[:123], right, rtol=1e-2 if dtype == bf16 else 1e-4, atol=1e-6)
    assert not d_weight[123:].any()


@both
def test_a_row_of_nan_stays_by_itself(implementation):
    """Its loss is nan, as it must be seen; the other rows' logprobs and hidden gradients are as without it."""
    hidden, weight, rows, _ = problem(12, 123, 31)
    want, d_hidden, _ = differentiate(implementation.policy_loss, hidden, weight, rows, FULL["k2"])
    spoiled = hidden.clone()
    spoiled[4] = torch.nan
    got, d_spoiled, _ = differentiate(implementation.policy_loss, spoiled, weight, rows, FULL["k2"])
    others = torch.arange(12) != 4
    assert torch.isnan(got.loss) and torch.isnan(got.logprobs[4])
    torch.testing.assert_close(got.logprobs[others], want.logprobs[others])
    torch.testing.assert_close(d_spoiled[others], d_hidden[others])


@pytest.mark.parametrize("temperature", [1e-2, 1.0, 100.0])
@pytest.mark.parametrize("logit_map", [LogitMap(), LogitMap(scale=0.0625), LogitMap(soft_cap=30.0), LogitMap(2.0, 4.0)])
def test_temperatures_scales_and_caps(temperature, logit_map):
    given = problem(20, 123, 31, f32)
    rows = dataclasses.replace(given.rows, temperature=torch.full((20,), temperature))
    exact = given.double()
    scores = reference.score(exact.hidden, exact.weight, rows.score_rows(), logit_map)
    rows = dataclasses.replace(rows, old_logprobs=scores.logprobs + 0.1, reference_logprobs=scores.logprobs - 0.2)
    for kind in ("k2", "exact, entropy"):
        options = {"logit_map": logit_map}
        want, *want_gradients = solve(reference.policy_loss, exact._replace(rows=rows), FULL[kind], **options)
        got, *got_gradients = solve(chunked.policy_loss, given._replace(rows=rows), FULL[kind], **options)
        # float32 products err by about 1e-6, which a temperature of 0.01 multiplies by 100.
        bound = 1e-5 * max(1.0, 1 / temperature)
        torch.testing.assert_close(got.logprobs.double(), want.logprobs, rtol=1e-6, atol=bound)
        for ours, right in zip(got_gradients, want_gradients, strict=True):
            assert gap(ours, right) <= 10 * bound


def test_dividing_by_a_temperature_is_scaling_the_logits():
    hidden, weight, rows, _ = problem(10, 123, 31)
    half = ScoreRows(rows.targets, torch.full((10,), 0.5, dtype=f64))
    twice = ScoreRows(rows.targets, torch.ones(10, dtype=f64))
    torch.testing.assert_close(chunked.score(hidden, weight, half), chunked.score(hidden, weight, twice, LogitMap(2.0)))


def test_memory_layouts_do_not_matter():
    """Hidden states and head as views with strides, and at an odd offset in their storage."""
    given = problem(13, 123, 31)
    want, *want_gradients = solve(chunked.policy_loss, given, FULL["k2"])
    wide = torch.zeros(13, 62, dtype=f64)
    wide[:, ::2] = given.hidden
    shifted = torch.zeros(123 * 31 + 1, dtype=f64)
    shifted[1:] = given.weight.flatten()
    views = [
        given._replace(hidden=wide[:, ::2]),
        given._replace(weight=given.weight.t().contiguous().t()),
        given._replace(weight=shifted[1:].view(123, 31)),
    ]
    for view in views:
        got, *gradients = solve(chunked.policy_loss, view, FULL["k2"])
        torch.testing.assert_close(got, want)
        assert all(gap(g, w) <= 1e-12 for g, w in zip(gradients, want_gradients, strict=True))


def test_neither_hidden_states_nor_rows_are_changed():
    given = problem(13, 123, 31)
    columns = {f.name: getattr(given.rows, f.name).clone() for f in dataclasses.fields(LossRows)}
    hidden, weight = given.hidden.clone(), given.weight.clone()
    solve(chunked.policy_loss, given, FULL["exact, entropy"])
    assert torch.equal(given.hidden, hidden) and torch.equal(given.weight, weight)
    assert all(torch.equal(getattr(given.rows, name), column) for name, column in columns.items())


def test_a_hidden_state_that_is_used_twice_gets_both_gradients():
    """The value head of the same states must not find the loss's buffer in its own gradient."""
    hidden, weight, rows, _ = problem(13, 123, 31)
    alone = differentiate(chunked.policy_loss, hidden, weight, rows, FULL["k2"])[1]
    hidden.requires_grad_()
    (chunked.policy_loss(hidden, weight, rows, FULL["k2"]).loss + hidden.sum()).backward()
    torch.testing.assert_close(hidden.grad, alone + 1)


def test_a_graph_that_is_kept_gives_the_same_gradient_twice():
    hidden, weight, rows, _ = problem(13, 123, 31)
    hidden.requires_grad_(), weight.requires_grad_()
    loss = chunked.policy_loss(hidden, weight, rows, FULL["k2"]).loss
    first = torch.autograd.grad(3 * loss, (hidden, weight), retain_graph=True)
    second = torch.autograd.grad(3 * loss, (hidden, weight), retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    loss.backward(retain_graph=True)
    once = hidden.grad.clone(), weight.grad.clone()
    loss.backward()
    assert torch.equal(hidden.grad, 2 * once[0]) and torch.equal(weight.grad, 2 * once[1])


def test_the_order_of_the_rows_is_of_no_account():
    given = problem(40, 123, 31)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    rows = LossRows(**{f.name: getattr(given.rows, f.name)[order] for f in dataclasses.fields(LossRows)})
    want, d_hidden, d_weight = solve(chunked.policy_loss, given, FULL["k3"], chunk_rows=16)
    got, d_permuted, d_same = differentiate(
        chunked.policy_loss, given.hidden[order], given.weight, rows, FULL["k3"], chunk_rows=16
    )
    torch.testing.assert_close((got.loss, got.sums, got.extremes), (want.loss, want.sums, want.extremes))
    assert gap(d_permuted, d_hidden[order]) <= 1e-12 and gap(d_same, d_weight) <= 1e-12


@pytest.mark.parametrize("dtype", [f32, bf16])
def test_cross_entropy_is_that_of_torch_s_own_fused_one(dtype):
    """A = 1 and the old policy's logprobs those of now: the gradient is that of the mean cross-entropy."""
    hidden, weight, rows, _ = problem(32, 507, 64, dtype)
    rows = dataclasses.replace(rows, temperature=torch.ones(32), ptx_weight=torch.zeros(32))
    ones = torch.ones(32)
    old = chunked.score(hidden, weight, rows.score_rows()).logprobs
    rows = dataclasses.replace(rows, old_logprobs=old, advantages=ones, policy_weight=ones / 32)
    out, *ours = differentiate(chunked.policy_loss, hidden, weight, rows, PLAIN)
    plain = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    F.linear_cross_entropy(*plain, rows.targets).backward()
    exact = hidden.double().requires_grad_(), weight.double().requires_grad_()
    F.cross_entropy(exact[0] @ exact[1].t(), rows.targets).backward()
    assert out.loss == -1
    for got, theirs, right in zip(ours, plain, exact, strict=True):
        assert gap(got, theirs.grad) <= (1e-6 if dtype == f32 else 1e-2)
        assert gap(got, right.grad) <= max(1e-6, gap(theirs.grad, right.grad))
