"""The KL over the whole vocabulary, from the reference's hidden states and head."""

import dataclasses

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from destruct.ops import chunked, reference
from destruct.ops.rows import SUM_NAMES, LogitMap, ReferenceStates, ScoreRows
from tests.ops.problems import FULL, Census, bf16, differentiate, f32, f64, gap, problem, solve

KINDS = ["exact", "exact_forward"]
EXACT = SUM_NAMES.index("kl_reference_exact")
both = pytest.mark.parametrize("implementation", [reference, chunked])


@both
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("logit_map", [LogitMap(), LogitMap(scale=0.7, soft_cap=3.0)])
def test_value_and_gradients_are_those_of_torch_distributions(implementation, kind, logit_map):
    """Policy and reference at the row's temperature, both through the logit map; PTX and idle rows have no part."""
    hidden, weight, rows, states = problem(20, 123, 31)
    rows = dataclasses.replace(rows, advantages=torch.zeros(20), ptx_weight=torch.zeros(20))
    hidden.requires_grad_(), weight.requires_grad_()

    def said(x, w):
        products = x @ w.t() * logit_map.scale
        cap = logit_map.soft_cap
        logits = products if cap is None else cap * torch.tanh(products / cap)
        return Categorical(logits=logits / rows.temperature[: len(x), None])

    count = len(states.hidden)
    policy, anchor = said(hidden[:count], weight), said(states.hidden, states.weight)
    divergence = kl_divergence(*((policy, anchor) if kind == "exact" else (anchor, policy)))
    want = torch.autograd.grad(0.1 * (rows.policy_weight[:count] * divergence).sum(), (hidden, weight))
    coefficients = dataclasses.replace(FULL[kind], clip_low=1.0, dual_clip=None)
    out, *got = differentiate(
        implementation.policy_loss, hidden, weight, rows, coefficients, states, logit_map=logit_map
    )
    torch.testing.assert_close(out.sums[EXACT], divergence[rows.response[:count]].sum().detach(), rtol=1e-11, atol=0)
    torch.testing.assert_close(out.loss, 0.1 * (rows.policy_weight[:count] * divergence).sum().detach())
    assert all(gap(g, w) <= 1e-11 for g, w in zip(got, want, strict=True))


@both
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [f64, f32, bf16])
def test_a_policy_has_no_kl_to_itself_and_no_gradient_of_it(implementation, kind, dtype):
    hidden, weight, rows, _ = problem(20, 507, 31, dtype)
    rows = dataclasses.replace(rows, advantages=torch.zeros(20), ptx_weight=torch.zeros(20))
    itself = ReferenceStates(hidden.clone(), weight.clone())
    out, *gradients = differentiate(implementation.policy_loss, hidden, weight, rows, FULL[kind], itself)
    assert abs(out.sums[EXACT]) <= 1e-7
    assert all(g.abs().max() <= (1e-8 if dtype == f32 else 1e-16 if dtype == f64 else 1e-8) for g in gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_near_the_reference_float32_keeps_the_kl_to_1e_5_and_never_below_minus_1e_6(kind):
    hidden, weight, rows, _ = problem(64, 507, 31)
    noise = torch.randn(64, 31, generator=torch.Generator().manual_seed(1), dtype=f64)
    for distance in (1e-1, 1e-2, 1e-3, 1e-5):
        given = (hidden, weight, ReferenceStates(hidden + distance * noise, weight))
        single = (hidden.float(), weight.float(), ReferenceStates(given[2].hidden.float(), weight.float()))
        for i in torch.nonzero(rows.response)[:, 0].tolist():
            one = rows.part(i, i + 1)
            right, got = (
                op.policy_loss(h[i : i + 1], w, one, FULL[kind], ReferenceStates(s.hidden[i : i + 1], s.weight)).sums[
                    EXACT
                ]
                for op, (h, w, s) in ((reference, given), (chunked, single))
            )
            assert abs(got - right) <= 1e-5 and got >= -1e-6


def test_the_mean_of_k1_over_sampled_tokens_goes_to_the_exact_kl():
    """One row of 6 tokens, 200 000 samples: the standard error is that of the log odds themselves."""
    generator = torch.Generator().manual_seed(0)
    hidden, other = torch.randn(2, 1, 4, generator=generator, dtype=f64)
    weight = torch.randn(6, 4, generator=generator, dtype=f64)
    p, q = (hidden @ weight.t()).log_softmax(1)[0], (other @ weight.t()).log_softmax(1)[0]
    tokens = torch.multinomial(p.exp(), 200_000, replacement=True, generator=generator)
    k1 = (p - q)[tokens]
    rows = problem(1, 6, 4).rows
    rows = dataclasses.replace(rows, temperature=torch.ones(1))
    out = chunked.policy_loss(hidden, weight, rows, FULL["exact"], ReferenceStates(other, weight))
    assert abs(out.sums[EXACT] - k1.mean()) <= 4 * k1.std() / 200_000**0.5


@pytest.mark.parametrize("kind", KINDS)
def test_four_products_and_neither_models_logits_in_full(kind):
    """The reference's states end before the last rows, in the middle of a chunk and of a block."""
    given = problem(98, 507, 31)
    assert len(given.states.hidden) == 97
    with Census() as census:
        solve(chunked.policy_loss, given, FULL[kind], chunk_rows=33)
    assert len(census.products) == 3 * 4 and census.largest <= max(33 * 507, 507 * 34)
    assert sum(rows for rows, inner, _ in census.products if inner == 34) == len(given.states.hidden)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_that_both_models_rule_out_change_nothing(kind):
    """Logits of -inf in both: p = q = 0 there, and 0 log 0 is 0."""
    hidden, weight, rows, states = problem(12, 123, 31)
    hidden, other = hidden.abs(), states.hidden.abs()
    rows = dataclasses.replace(rows, targets=rows.targets % 120)
    out_of_reach, head = weight.clone(), states.weight.clone()
    out_of_reach[120:], head[120:] = -torch.inf, -torch.inf
    for implementation in (reference, chunked):
        want, d_hidden, _ = differentiate(
            implementation.policy_loss, hidden, weight[:120], rows, FULL[kind], ReferenceStates(other, head[:120])
        )
        with torch.no_grad():
            got = implementation.policy_loss(hidden, out_of_reach, rows, FULL[kind], ReferenceStates(other, head))
        torch.testing.assert_close(got, want)


def test_the_scores_of_the_reference_are_not_touched():
    hidden, weight, rows, states = problem(12, 123, 31)
    before = states.hidden.clone(), states.weight.clone()
    hidden.requires_grad_()
    chunked.policy_loss(hidden, weight, rows, FULL["exact"], states).loss.backward()
    assert torch.equal(states.hidden, before[0]) and torch.equal(states.weight, before[1])
    scores = chunked.score(
        states.hidden, states.weight, ScoreRows(rows.targets[: len(states.hidden)], torch.ones(len(states.hidden)))
    )
    assert torch.isfinite(scores.logprobs).all()
