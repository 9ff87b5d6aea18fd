"""The Triton implementation against the float64 definition: run by `test_triton.py`, in a process of its own.

TRITON_INTERPRET=1 pytest tests/ops/triton_cases.py        # on the CPU; without it on the GPU
"""

import dataclasses
import math
import os

import pytest
import torch

from destruct.ops import fused_triton, reference
from destruct.ops.rows import PRODUCTS, SUM_NAMES, LogitMap, LossRows, ReferenceStates, ScoreRows
from tests.ops.problems import FULL, PLAIN, Census, Problem, Tolerance, bf16, f32, f64, gap, problem, solve

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
# bfloat16: logit gradients and results are rounded to it, by 2^-9 each; on the CPU each chunk's product too.
TOLERANCES = {f32: Tolerance(1e-6, 1e-5, 1e-5), bf16: Tolerance(5e-6, 5e-5, 6e-3)}


def moved(rows):
    """LossRows or ScoreRows on the device."""
    columns = {f.name: getattr(rows, f.name) for f in dataclasses.fields(rows)}
    return type(rows)(**{n: c.to(DEVICE) if isinstance(c, torch.Tensor) else c for n, c in columns.items()})


def ours(given: Problem, coefficients, **options):
    """(output, d_hidden, d_weight) of the Triton implementation, on the CPU again."""
    states = ReferenceStates(given.states.hidden.to(DEVICE), given.states.weight.to(DEVICE))
    there = Problem(given.hidden.to(DEVICE), given.weight.to(DEVICE), moved(given.rows), states)
    out, *gradients = solve(fused_triton.policy_loss, there, coefficients, **options)
    return type(out)(*(x.detach().cpu() for x in out)), *(g.cpu() for g in gradients)


def score(hidden, weight, rows, *how):
    """Scores by the Triton implementation, on the CPU again."""
    out = fused_triton.score(hidden.to(DEVICE), weight.to(DEVICE), moved(rows), *how)
    return type(out)(*(x.cpu() for x in out))


def agree(given: Problem, coefficients, dtype, logit_map=PRODUCTS, factor=1.0, **options):
    """Value and both gradients are within the table's tolerances of the definition, times a factor."""
    want, *right = solve(reference.policy_loss, given.double(), coefficients, logit_map=logit_map)
    got, *gradients = ours(given, coefficients, logit_map=logit_map, **options)
    bound = Tolerance(*(factor * t for t in TOLERANCES[dtype]))
    torch.testing.assert_close(got.loss.double(), want.loss.detach(), rtol=bound.loss, atol=bound.loss)
    torch.testing.assert_close(got.logprobs.double(), want.logprobs, rtol=1e-6, atol=bound.row)
    torch.testing.assert_close(got.sums, want.sums, rtol=bound.row, atol=bound.row * max(1, len(given.hidden)))
    torch.testing.assert_close(got.extremes.double(), want.extremes, rtol=bound.row, atol=2 * bound.row)
    assert [g.dtype for g in gradients] == [dtype, dtype]
    assert all(gap(g, r) <= bound.gradient for g, r in zip(gradients, right, strict=True))


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("kind", FULL)
def test_value_and_both_gradients_match_the_float64_definition(kind, dtype):
    """Three chunks; the reference's states end with the last response row.  Rows 0 to 2 are beyond the clamps."""
    given = problem(19, 123, 31, dtype)
    far = torch.zeros(19, dtype=f64).index_copy(0, torch.arange(3), torch.tensor([25.0, -25.0, 25.0], dtype=f64))
    rows = dataclasses.replace(
        given.rows,
        old_logprobs=given.rows.old_logprobs + far.roll(1),
        reference_logprobs=given.rows.reference_logprobs + far,
    )
    # Terms of e^20 stand beside terms of 1: the sums that hold them are right to 1e-6 of themselves.
    agree(given._replace(rows=rows), FULL[kind], dtype, chunk_rows=8)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("shape", [(0, 123, 31), (1, 507, 31), (9, 507, 64), (3, 5003, 31)])
def test_shapes_that_no_block_divides(shape, dtype):
    """The last is of two blocks of 4096 columns."""
    agree(problem(*shape, dtype), FULL["exact, entropy"], dtype)


def test_a_weighted_k3_keeps_its_digits_at_a_large_log_ratio():
    """At 16 nats e^r is 9e6, and the slope -ratio r."""
    given = problem(9, 123, 31, f32)
    logprobs = reference.score(given.hidden.double(), given.weight.double(), given.rows.score_rows()).logprobs
    rows = dataclasses.replace(given.rows, reference_logprobs=logprobs + 16.0, advantages=torch.zeros(9))
    agree(given._replace(rows=rows), FULL["k3_weighted"], f32)


@pytest.mark.skipif(DEVICE == "cpu", reason="only a GPU can be waited for")
def test_nothing_waits_for_the_device():
    given = problem(19, 123, 31, f32)
    hidden, weight = (x.to(DEVICE).requires_grad_() for x in (given.hidden, given.weight))
    states = ReferenceStates(given.states.hidden.to(DEVICE), given.states.weight.to(DEVICE))
    rows = moved(given.rows)
    for wait in ("default", "error"):  # the first time kernels are compiled
        torch.cuda.set_sync_debug_mode(wait)
        try:
            out = fused_triton.policy_loss(hidden, weight, rows, FULL["exact, entropy"], states, chunk_rows=8)
            (out.loss + fused_triton.score(hidden, weight, rows.score_rows()).logprobs.sum()).backward()
            with torch.no_grad():
                fused_triton.score(hidden, weight, ScoreRows(rows.targets, rows.temperature))
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("temperature", [1e-2, 100.0])
@pytest.mark.parametrize("logit_map", [LogitMap(scale=0.0625), LogitMap(soft_cap=30.0), LogitMap(2, 4)])
def test_temperatures_scales_and_caps(temperature, logit_map):
    given = problem(9, 123, 31, f32)
    rows = dataclasses.replace(given.rows, temperature=torch.full((9,), temperature))
    logprobs = reference.score(given.hidden.double(), given.weight.double(), rows.score_rows(), logit_map).logprobs
    rows = dataclasses.replace(rows, old_logprobs=logprobs + 0.1, reference_logprobs=logprobs - 0.2)
    for kind in ("k2", "exact, entropy"):
        # float32 products err by about 1e-6, which a temperature of 0.01 multiplies by 100.
        agree(given._replace(rows=rows), FULL[kind], f32, logit_map, factor=max(1.0, 2 / temperature))


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_old_logprobs_are_bitwise_those_of_training_whatever_the_loss(dtype):
    given = problem(19, 123, 31, dtype)
    old = score(given.hidden, given.weight, given.rows.score_rows(), LogitMap(), 8)
    rows = dataclasses.replace(given.rows, old_logprobs=old.logprobs, reference_logprobs=old.logprobs)
    for kind in ("k2", "exact_forward, entropy"):
        out, *gradients = ours(given._replace(rows=rows), FULL[kind], chunk_rows=8)
        again, *same = ours(given._replace(rows=rows), FULL[kind], chunk_rows=8)
        assert torch.equal(out.logprobs, old.logprobs) and torch.equal(out.loss, again.loss)
        assert all(torch.equal(g, s) for g, s in zip(gradients, same, strict=True))
        named = dict(zip(SUM_NAMES, out.sums.tolist(), strict=True))
        assert named["ratio"] == rows.response.sum() and named["kl_old_k3"] == named["clip_low"] == 0


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_idle_rows_contribute_exactly_nothing_even_when_they_hold_nan(dtype):
    given = problem(15, 123, 31, dtype)
    active = given.rows.active
    wanted = {kind: ours(given, FULL[kind], chunk_rows=8) for kind in ("k3", "exact")}
    noisy = {"old_logprobs", "reference_logprobs", "advantages", "temperature"}
    spoiled = {name: torch.where(active, getattr(given.rows, name), torch.nan) for name in noisy}
    hidden = torch.where(active[:, None], given.hidden, torch.nan)
    anchored = given.rows.response[: len(given.states.hidden), None]
    states = ReferenceStates(torch.where(anchored, given.states.hidden, torch.nan), given.states.weight)
    given = Problem(hidden, given.weight, dataclasses.replace(given.rows, **spoiled), states)
    for kind, (want, *right) in wanted.items():
        out, *gradients = ours(given, FULL[kind], chunk_rows=8)
        assert all(torch.equal(a, b) for a, b in zip(out[:3], want[:3], strict=True))
        assert all(torch.equal(g, r) for g, r in zip(gradients, right, strict=True))
        assert not gradients[0][~active].any()


def test_a_row_of_nan_stays_by_itself():
    given = problem(12, 123, 31, f32)
    want, d_hidden, _ = ours(given, FULL["k2"])
    hidden, others = given.hidden.clone(), torch.arange(12) != 4
    hidden[4] = torch.nan
    got, d_spoiled, _ = ours(given._replace(hidden=hidden), FULL["k2"])
    assert torch.isnan(got.loss) and torch.isnan(got.logprobs[4])
    assert torch.equal(got.logprobs[others], want.logprobs[others])
    assert torch.equal(d_spoiled[others], d_hidden[others])


@pytest.mark.parametrize("kind", ["k2", "exact", "exact_forward"])
def test_logits_of_minus_infinity_change_nothing_for_the_other_tokens(kind):
    """In both models, and as many as fill a block of columns."""
    hidden, weight, rows, states = problem(9, 123, 31, f32)
    hidden, states = hidden.abs(), ReferenceStates(states.hidden.abs(), states.weight)
    want, _, right = ours(Problem(hidden, weight, rows, states), FULL[kind])
    head, anchor = (torch.cat([torch.full((4200, w.shape[1]), -torch.inf), w]) for w in (weight, states.weight))
    moved_rows = dataclasses.replace(rows, targets=rows.targets + 4200)
    given = Problem(hidden, head, moved_rows, ReferenceStates(states.hidden, anchor))
    got, _, d_head = ours(given, FULL[kind])
    torch.testing.assert_close(tuple(got), tuple(want), rtol=1e-5, atol=1e-6)
    assert gap(d_head[4200:], right) <= 1e-5 and not d_head[:4200].any()
    first = ScoreRows(rows.targets * 0 + 7, rows.temperature)
    with torch.no_grad():
        for as_trained in (True, False):
            scores = score(hidden, head, dataclasses.replace(first, as_trained=as_trained))
            assert torch.isneginf(scores.logprobs).all() and scores.entropy.isfinite().all()


@pytest.mark.parametrize("offset, spread", [(100.0, 1.0), (0.0, 2500.0)])
def test_huge_logits_keep_their_digits(offset, spread):
    """Whole numbers, so that float32 products are exact: a common offset of 1e4, then a spread of 1e4."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.ones(8, 4), torch.randint(-1, 2, (123, 4), generator=generator) * spread
    hidden[:, 0], weight[:, 0] = 100.0, offset
    given = problem(8, 123, 4, f32)._replace(hidden=hidden, weight=weight)
    want, *right = solve(reference.policy_loss, given.double(), FULL["k2"])
    got, *gradients = ours(given, FULL["k2"])
    torch.testing.assert_close(got.logprobs.double(), want.logprobs, rtol=1e-6, atol=1e-5)
    # Column 0 of d_hidden is 100 times the row sum of the logit gradient: rounding alone, where the truth is 0.
    assert gap(gradients[0][:, 1:], right[0][:, 1:]) <= 1e-5 and gap(gradients[1], right[1]) <= 1e-5
    scored = ScoreRows(given.rows.targets, given.rows.temperature)
    with torch.no_grad():
        scores = score(hidden, weight, scored)
    right = reference.score(hidden.double(), weight.double(), scored)
    torch.testing.assert_close(scores.logprobs.double(), right.logprobs, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(scores.entropy.double(), right.entropy, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("logit_map", [LogitMap(), LogitMap(2, 4)])
@pytest.mark.parametrize("shape", [(0, 123, 31), (1, 123, 31), (300, 1100, 70)])
def test_scores_without_logits_match_the_float64_definition(shape, logit_map, dtype):
    """The largest has rows, columns and width beyond the last tile, and several splits; hidden has strides."""
    given = problem(*shape, dtype)
    scored = ScoreRows(given.rows.targets, given.rows.temperature)
    hidden = torch.stack([given.hidden, given.hidden], dim=2)[:, :, 0]
    with torch.no_grad(), Census() as census:
        got = score(hidden, given.weight, scored, logit_map)
    right = reference.score(given.hidden.double(), given.weight.double(), scored, logit_map)
    torch.testing.assert_close(tuple(x.double() for x in got), tuple(right), rtol=1e-6, atol=TOLERANCES[dtype].row)
    assert not census.products
    # The interpreter copies its arguments as bytes, so that 4 x 1100 x 70 of them count.
    assert shape[0] < 300 or census.largest < 300 * 1100


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_scores_can_be_differentiated_with_any_upstream_gradient(dtype):
    given = problem(11, 123, 31, dtype)
    scored = ScoreRows(given.rows.targets, given.rows.temperature)
    upstream = torch.randn(3, 11, generator=torch.Generator().manual_seed(1), dtype=f64)
    upstream[:, 5] = 0  # a row whose gradient nobody asks for
    results = []
    for op, kind in ((reference.score, f64), (score, dtype)):
        inputs = [x.to(kind).requires_grad_() for x in (given.hidden, given.weight)]
        out = op(*inputs, scored, LogitMap(1.5, 8.0), 4)
        results.append((out, torch.autograd.grad(list(out), inputs, [u.to(out[0].dtype) for u in upstream])))
    (want, right), (got, gradients) = results
    torch.testing.assert_close(tuple(x.double() for x in got), tuple(want), rtol=1e-6, atol=TOLERANCES[dtype].row)
    assert all(gap(g, r) <= TOLERANCES[dtype].gradient for g, r in zip(gradients, right, strict=True))
    assert not gradients[0][5].any()


def test_no_tensor_grows_with_rows_times_vocabulary_and_nothing_unasked_is_computed():
    given = problem(130, 507, 31, f32)
    hidden, weight, rows = given.hidden.to(DEVICE), given.weight.to(DEVICE), moved(given.rows)
    for want_hidden, want_weight in ((True, True), (True, False), (False, True), (False, False)):
        inputs = hidden.clone().requires_grad_(want_hidden), weight.clone().requires_grad_(want_weight)
        with Census() as census:
            out = fused_triton.policy_loss(*inputs, rows, FULL["k2"], chunk_rows=16)
        assert len(census.products) == 9 * (1 + want_hidden + want_weight) and census.largest < 130 * 507
        assert out.loss.requires_grad == (want_hidden or want_weight)
    inputs = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    with torch.no_grad(), Census() as census:
        assert not fused_triton.policy_loss(*inputs, rows, FULL["k2"], chunk_rows=16).loss.requires_grad
    assert len(census.products) == 9


def test_neither_hidden_states_nor_rows_are_changed_and_the_backward_only_scales():
    given = problem(13, 123, 31, f32)
    _, *once = ours(given, FULL["k2"])
    columns = {f.name: getattr(given.rows, f.name).clone() for f in dataclasses.fields(LossRows)}
    hidden, weight = (x.to(DEVICE).requires_grad_() for x in (given.hidden, given.weight))
    before = hidden.detach().clone()
    loss = fused_triton.policy_loss(hidden, weight, moved(given.rows), FULL["k2"]).loss
    (-3.0 * loss).backward()
    assert gap(hidden.grad.cpu(), -3 * once[0]) <= 1e-6 and gap(weight.grad.cpu(), -3 * once[1]) <= 1e-6
    assert torch.equal(hidden, before)
    assert all(torch.equal(getattr(given.rows, name), column) for name, column in columns.items())


def test_rows_in_every_regime_of_the_clip():
    """Every ratio with every advantage: which rows have a gradient is known by hand."""
    low, high, dual = 0.2, 0.5, 3.0
    ratios = [c * (1 + side) for c in (1 - low, 1 + low, 1 + high, dual) for side in (-1e-3, 1e-3)]
    ratios += [math.exp(-25), 0.3, 1.0, 2.0, 10.0, math.exp(19), math.exp(25)]
    ratio, advantage = torch.cartesian_prod(*(torch.tensor(x, dtype=f64) for x in (ratios, [1.5, -0.7, 0.0]))).T
    given = problem(len(ratio), 11, 5, f32)
    zero, logprobs = torch.zeros_like(ratio), score(given.hidden, given.weight, given.rows.score_rows()).logprobs
    rows = dataclasses.replace(
        given.rows, old_logprobs=logprobs - ratio.log(), advantages=advantage, policy_weight=zero + 1, ptx_weight=zero
    )
    coefficients = dataclasses.replace(PLAIN, clip_low=low, clip_high=high, dual_clip=dual)
    _, d_hidden, _ = ours(given._replace(rows=rows), coefficients)
    bounds = {1.5: (math.exp(-20), 1 + high), -0.7: (1 - low, dual), 0.0: (1.0, 1.0)}
    moves = [bounds[a][0] < r < bounds[a][1] for r, a in zip(ratio.tolist(), advantage.tolist(), strict=True)]
    assert d_hidden.abs().amax(1).gt(0).tolist() == moves


def test_what_this_implementation_does_not_take_is_named():
    hidden, weight, rows, _ = problem(6, 123, 31)
    for op, request in ((fused_triton.policy_loss, (rows, PLAIN)), (fused_triton.score, (rows.score_rows(),))):
        with pytest.raises(ValueError, match="hidden is torch.float64.*use 'chunked'"):
            op(hidden, weight, *request)
        with pytest.raises(ValueError, match=r"hidden is \(5, 31\); targets is \(6,\)"):
            op(hidden[:5].float(), weight.float(), *request)
