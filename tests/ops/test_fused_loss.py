"""The fused loss against its float64 definition, and the definition against what torch itself has."""

import dataclasses
import math

import pytest
import torch

from destruct.ops import chunked, reference, row_blocks
from destruct.ops.rows import SUM_NAMES, LossRows, ReferenceStates
from tests.ops.problems import (
    FULL,
    PLAIN,
    TOLERANCES,
    Census,
    bf16,
    cross_entropy,
    differentiate,
    f32,
    f64,
    gap,
    problem,
    solve,
)

SMALL = [(0, 123, 31), (1, 123, 31), (13, 507, 31), (37, 123, 64)]
LARGE = [((5, 32001, 31), kind) for kind in FULL]
LARGE += [((16, 128256, 16), kind) for kind in ("k2", "exact, entropy", "exact_forward")]
CASES = [(shape, kind) for shape in SMALL for kind in FULL]
CASES += [pytest.param(*case, marks=pytest.mark.slow) for case in LARGE]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("shape", "kind"), CASES)
def test_value_and_both_gradients_match_the_float64_definition(shape, kind, dtype):
    given = problem(*shape, dtype)
    want, *want_gradients = solve(reference.policy_loss, given.double(), FULL[kind])
    got, *got_gradients = solve(chunked.policy_loss, given, FULL[kind], chunk_rows=8)
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(got.loss.double(), want.loss, rtol=tolerance.loss, atol=tolerance.loss)
    torch.testing.assert_close(got.logprobs.double(), want.logprobs, rtol=0, atol=tolerance.row)
    torch.testing.assert_close(got.sums, want.sums, rtol=tolerance.row, atol=tolerance.row * max(1, shape[0]))
    torch.testing.assert_close(got.extremes.double(), want.extremes, rtol=tolerance.row, atol=2 * tolerance.row)
    assert [g.dtype for g in got_gradients] == [dtype, dtype]
    assert all(gap(g, w) <= tolerance.gradient for g, w in zip(got_gradients, want_gradients, strict=True))


def test_bfloat16_gradients_stay_near_those_of_plain_torch_however_many_chunks():
    hidden, weight, rows, _ = problem(96, 507, 64, bf16)
    zeros = torch.zeros(96, dtype=f64)
    rows = dataclasses.replace(rows, temperature=zeros + 1, policy_weight=zeros, ptx_weight=rows.policy_weight)
    _, *want = differentiate(reference.policy_loss, hidden.double(), weight.double(), rows, PLAIN)
    _, *got = differentiate(chunked.policy_loss, hidden, weight, rows, PLAIN, chunk_rows=16)
    plain = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    (cross_entropy(*plain, rows) * rows.ptx_weight).sum().backward()
    for ours, theirs, right in zip(got, plain, want, strict=True):
        # Each chunk's share of the weight gradient is rounded to bfloat16 before it is added in float32.
        assert gap(ours, right) <= min(4e-3, 1.25 * gap(theirs.grad, right))


@pytest.mark.parametrize("kind", FULL)
def test_gradcheck_in_float64(kind):
    hidden, weight, rows, states = problem(9, 11, 5)
    states = states if FULL[kind].exact_kl else None
    inputs = (hidden.requires_grad_(), weight.requires_grad_())

    def loss(h, w):
        return chunked.policy_loss(h, w, rows, FULL[kind], states, chunk_rows=4).loss

    assert torch.autograd.gradcheck(loss, inputs)


def test_the_size_of_a_chunk_changes_nothing_but_rounding():
    given = problem(50, 507, 31, f32)
    first, *first_gradients = solve(chunked.policy_loss, given, FULL["exact, entropy"], chunk_rows=50)
    for chunk_rows in (1, 7, 16, 49, None):
        out, *gradients = solve(chunked.policy_loss, given, FULL["exact, entropy"], chunk_rows=chunk_rows)
        assert gap(out.logprobs, first.logprobs) <= 1e-6
        assert all(gap(g, w) <= 1e-6 for g, w in zip(gradients, first_gradients, strict=True))


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("implementation", [reference, chunked])
def test_score_and_loss_give_bitwise_equal_logprobs_and_the_first_ratio_is_exactly_one(
    implementation, dtype, monkeypatch
):
    """Over several chunks of several blocks, the last of each shorter."""
    monkeypatch.setattr(row_blocks, "BLOCK_BYTES", 7 * 123 * 8)
    monkeypatch.setattr(chunked, "MAX_CHUNK_ROWS", 112)
    hidden, weight, rows, _ = problem(300, 123, 31, dtype)
    old = implementation.score(hidden, weight, rows.score_rows())
    rows = dataclasses.replace(rows, old_logprobs=old.logprobs, reference_logprobs=old.logprobs)
    out, *gradients = differentiate(implementation.policy_loss, hidden, weight, rows, FULL["k2"])
    assert torch.equal(out.logprobs, old.logprobs)
    assert out.extremes.tolist() == [0.0, 0.0]
    named = dict(zip(SUM_NAMES, out.sums.tolist(), strict=True))
    assert named["ratio"] == rows.response.sum() and named["kl_old_k3"] == named["clip_low"] == named["clip_high"] == 0
    again, *same_gradients = differentiate(implementation.policy_loss, hidden, weight, rows, FULL["k2"])
    assert torch.equal(out.loss, again.loss)
    assert all(torch.equal(g, s) for g, s in zip(gradients, same_gradients, strict=True))


@pytest.mark.parametrize("temperature", [1.0, 0.3, 5.0])
def test_at_ratio_one_the_gradient_is_that_of_the_advantage_weighted_cross_entropy(temperature):
    hidden, weight, rows, _ = problem(20, 123, 31)
    every = {"temperature": temperature, "policy_weight": 0.05, "ptx_weight": 0.0}
    rows = dataclasses.replace(rows, **{name: torch.full((20,), value, dtype=f64) for name, value in every.items()})
    hidden.requires_grad_(), weight.requires_grad_()
    nll = cross_entropy(hidden, weight, rows, temperature)
    rows = dataclasses.replace(rows, old_logprobs=-nll.detach())
    want = torch.autograd.grad((0.05 * rows.advantages * nll).sum(), (hidden, weight))
    out, *got = differentiate(chunked.policy_loss, hidden, weight, rows, PLAIN, chunk_rows=8)
    torch.testing.assert_close(out.logprobs, -nll.detach())
    torch.testing.assert_close(out.loss, -rows.advantages.mean())
    assert all(gap(g, w) <= 1e-12 for g, w in zip(got, want, strict=True))


def test_ptx_rows_are_cross_entropy_and_response_rows_do_not_touch_them():
    hidden, weight, rows, _ = problem(24, 123, 31)
    rows = dataclasses.replace(rows, advantages=torch.zeros(24))
    hidden.requires_grad_(), weight.requires_grad_()
    nll = cross_entropy(hidden, weight, rows)[rows.ptx]
    want = torch.autograd.grad(0.5 * nll.mean(), (hidden, weight))
    out, *got = differentiate(chunked.policy_loss, hidden, weight, rows, PLAIN)
    torch.testing.assert_close(out.loss, 0.5 * nll.mean().detach())
    torch.testing.assert_close(out.sums[SUM_NAMES.index("ptx_nll")], nll.sum().detach())
    assert all(gap(g, w) <= 1e-12 for g, w in zip(got, want, strict=True))


def test_the_entropy_term_is_that_of_torch_distributions():
    hidden, weight, rows, _ = problem(24, 123, 31)
    rows = dataclasses.replace(rows, advantages=torch.zeros(24), ptx_weight=torch.zeros(24))
    hidden.requires_grad_(), weight.requires_grad_()
    entropy = torch.distributions.Categorical(logits=hidden @ weight.t() / 0.7).entropy()[rows.response]
    want = torch.autograd.grad(-0.3 * entropy.mean(), (hidden, weight))
    out, *got = differentiate(chunked.policy_loss, hidden, weight, rows, dataclasses.replace(PLAIN, entropy_coef=0.3))
    torch.testing.assert_close(out.sums[SUM_NAMES.index("entropy")], entropy.sum().detach())
    assert all(gap(g, w) <= 1e-12 for g, w in zip(got, want, strict=True))


@pytest.mark.parametrize("kind", ["k2", "k3"])
def test_the_kl_term_has_the_gradient_of_the_notebook_and_none_beyond_the_clamp(kind):
    """d/dlogp k2 = logp - ref and k3 = 1 - e^(ref - logp); rows 0 and 1 are 25 nats apart and stay still."""
    hidden, weight, rows, _ = problem(12, 123, 31)
    hidden.requires_grad_(), weight.requires_grad_()
    nll = cross_entropy(hidden, weight, rows, rows.temperature[:, None])
    r = torch.linspace(-1.5, 1.5, 12, dtype=f64).index_copy(0, torch.arange(2), torch.tensor([25.0, -25.0], dtype=f64))
    rows = dataclasses.replace(rows, reference_logprobs=r - nll.detach(), advantages=torch.zeros(12))
    rows = dataclasses.replace(rows, ptx_weight=torch.zeros(12))
    slope = torch.where(r.abs() > 20, 0.0, -r if kind == "k2" else 1 - r.exp())
    want = torch.autograd.grad(-(rows.policy_weight * 0.4 * slope * nll).sum(), (hidden, weight))
    coefficients = dataclasses.replace(PLAIN, kl_coef=0.4, kl=kind)
    _, *got = differentiate(chunked.policy_loss, hidden, weight, rows, coefficients)
    assert all(gap(g, w) <= 1e-12 for g, w in zip(got, want, strict=True))
    assert got[0][:2].abs().max() == 0


@pytest.mark.parametrize("kind", ["k3", "exact", "exact_forward, entropy"])
@pytest.mark.parametrize("implementation", [reference, chunked])
def test_idle_rows_contribute_exactly_nothing_even_when_they_hold_nan(implementation, kind):
    """Nor do the reference's states at rows that are none of a response's."""
    hidden, weight, rows, states = problem(30, 123, 31)
    kept, count = rows.active.nonzero().squeeze(1), len(states.hidden)
    dense = LossRows(**{f.name: getattr(rows, f.name)[kept] for f in dataclasses.fields(rows)})
    exact, last = FULL[kind].exact_kl, int(dense.response.nonzero().max())
    of_kept = ReferenceStates(states.hidden[rows.active[:count]][: last + 1], states.weight) if exact else None
    plain = hidden[kept], weight, dense, FULL[kind], of_kept
    want, d_hidden, d_weight = differentiate(implementation.policy_loss, *plain)
    noisy = {"old_logprobs", "reference_logprobs", "advantages", "temperature"}
    spoiled = {name: torch.where(rows.active, getattr(rows, name), torch.nan) for name in noisy}
    hidden = torch.where(rows.active[:, None], hidden, torch.nan)
    spoiled_states = torch.where(rows.response[:count, None], states.hidden, torch.nan)
    anchor = ReferenceStates(spoiled_states, states.weight) if exact else None
    rows = dataclasses.replace(rows, **spoiled)
    out, got_hidden, got_weight = differentiate(implementation.policy_loss, hidden, weight, rows, FULL[kind], anchor)
    torch.testing.assert_close((out.loss, out.sums, out.extremes), (want.loss, want.sums, want.extremes))
    assert gap(got_hidden[kept], d_hidden) <= 1e-12 and gap(got_weight, d_weight) <= 1e-12
    assert got_hidden[~rows.active].abs().max() == 0
    idle = dataclasses.replace(rows, policy_weight=torch.zeros(30), ptx_weight=torch.zeros(30))
    out, *gradients = differentiate(implementation.policy_loss, hidden, weight, idle, FULL[kind], anchor)
    assert out.loss == 0 and not out.sums.any() and not any(g.any() for g in gradients)
    assert out.extremes.tolist() == [-math.inf, -math.inf]


@pytest.mark.parametrize("offset, spread", [(100.0, 1.0), (0.0, 2500.0)])
def test_huge_logits_keep_their_digits(offset, spread):
    """Whole numbers, so that float32 products are exact: a common offset of 1e4, then a spread of 1e4."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.ones(8, 4), torch.randint(-1, 2, (123, 4), generator=generator) * spread
    hidden[:, 0], weight[:, 0] = 100.0, offset
    rows = problem(8, 123, 4).rows
    want, *want_gradients = differentiate(reference.policy_loss, hidden.double(), weight.double(), rows, FULL["k2"])
    got, *got_gradients = differentiate(chunked.policy_loss, hidden, weight, rows, FULL["k2"])
    torch.testing.assert_close(got.logprobs.double(), want.logprobs, rtol=1e-6, atol=1e-5)
    # Column 0 of d_hidden is 100 times the row sum of the logit gradient: rounding alone, where the truth is 0.
    assert gap(got_gradients[0][:, 1:], want_gradients[0][:, 1:]) <= 1e-5
    assert gap(got_gradients[1], want_gradients[1]) <= 1e-5


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_no_tensor_grows_with_rows_times_vocabulary_and_nothing_unasked_is_computed(dtype):
    hidden, weight, rows, _ = problem(96, 507, 31, dtype)
    bound = max(16 * 507, 507 * 31)
    for want_hidden, want_weight in ((True, True), (True, False), (False, True), (False, False)):
        inputs = hidden.clone().requires_grad_(want_hidden), weight.clone().requires_grad_(want_weight)
        with Census() as census:
            out = chunked.policy_loss(*inputs, rows, FULL["k2"], chunk_rows=16)
        assert census.largest <= bound and len(census.products) == 6 * (1 + want_hidden + want_weight)
        assert out.loss.requires_grad == (want_hidden or want_weight)
    inputs = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    with torch.no_grad(), Census() as census:
        out = chunked.policy_loss(*inputs, rows, FULL["k2"], chunk_rows=16)
        chunked.score(*inputs, rows.score_rows(), chunk_rows=16)
    assert census.largest <= bound and len(census.products) == 12 and not out.loss.requires_grad


@pytest.mark.parametrize("kind", ["none", "k1", "exact"])
def test_rows_without_a_gradient_are_left_out_of_its_products(kind):
    """Idle rows always; with neither KL nor entropy also those that the clip holds still."""
    given = problem(40, 123, 31)
    alone, *_ = differentiate(reference.policy_loss, given.hidden, given.weight, given.rows, FULL["none"])
    sums = dict(zip(SUM_NAMES, alone.sums.tolist(), strict=True))
    still = sums["clip_low"] + sums["clip_high"] + sums["clip_dual"] if kind == "none" else 0
    moving = int(given.rows.active.sum() - still)
    assert 0 < moving < 40 and (kind != "none" or still > 3)
    with Census() as census:
        solve(chunked.policy_loss, given, FULL[kind], chunk_rows=40)
    backward = census.products[1 + FULL[kind].exact_kl :]
    assert sorted(backward) == sorted([(moving, 123, 31), (123, moving, 31)])


def test_only_gradients_wait_for_the_backward_which_scales_them_and_runs_once():
    hidden, weight, rows, _ = problem(20, 123, 31)
    _, *once = differentiate(chunked.policy_loss, hidden, weight, rows, FULL["k2"])
    hidden.requires_grad_(), weight.requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        loss = chunked.policy_loss(hidden, weight, rows, FULL["k2"]).loss
    assert {t.data_ptr() for t in kept}.isdisjoint({hidden.data_ptr(), weight.data_ptr()})
    (loss * -3.0).backward()
    assert gap(hidden.grad, -3 * once[0]) <= 1e-15 and gap(weight.grad, -3 * once[1]) <= 1e-15
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_chunk_rows_depend_on_the_model_and_the_budget_alone():
    assert chunked.rows_per_chunk(32000, bf16) == 1024  # 32000 x 2 bytes x 1024 = 62.5 MiB
    assert chunked.rows_per_chunk(32000, f32) == 512
    assert chunked.rows_per_chunk(128256, bf16) == 256  # 261 fit
    assert chunked.rows_per_chunk(128256, bf16, 256) == 1024
    assert chunked.rows_per_chunk(10**7, f32) == 16
    assert chunked.rows_per_chunk(123, f64) == 1024
