"""What the loss reports about its rows, and its gradient in every regime of the ratio."""

import dataclasses
import math

import pytest
import torch

from destruct.ops import chunked, reference
from destruct.ops.rows import SUM_NAMES, LossCoefficients, LossRows, ScoreRows
from destruct.ops.terms import combine, loss_slopes

COEFFICIENTS = LossCoefficients(clip_low=0.2, clip_high=0.3, kl_coef=0.0, kl="none", entropy_coef=0.0)


def make_rows(**columns):
    """LossRows of float64 columns; what is not given is 0, temperatures are 1."""
    count = len(next(iter(columns.values())))
    given = {name: torch.as_tensor(values, dtype=torch.float64) for name, values in columns.items()}
    empty = {field.name: torch.zeros(count, dtype=torch.float64) for field in dataclasses.fields(LossRows)}
    return LossRows(**(empty | {"targets": torch.arange(count), "temperature": empty["temperature"] + 1} | given))


def test_figures_of_five_rows_worked_by_hand():
    """Ratios 2, 2, 1/2, 1/2 on response rows with A = 1, -1, 1, -1 and ref = logp - log 2; then one PTX row.

    Clipped losses: -1.3, 2, -0.5, 0.8.  Weights 1/4 and 3, the PTX row's logprob is -2.
    """
    logprobs, two = torch.tensor([-1.0, -1.0, -1.0, -1.0, -2.0], dtype=torch.float64), math.log(2)
    rows = make_rows(
        old_logprobs=[-1 - two, -1 - two, -1 + two, -1 + two, math.nan],
        reference_logprobs=[-1 - two] * 4 + [math.nan],
        advantages=[1, -1, 1, -1, math.nan],
        policy_weight=[0.25, 0.25, 0.25, 0.25, 0],
        ptx_weight=[0, 0, 0, 0, 3],
    )
    entropy = torch.tensor([0.5, 0.5, 0.5, 1.0, 7.0], dtype=torch.float64)
    loss, sums, extremes = combine(logprobs, entropy, entropy, rows, COEFFICIENTS)
    assert loss.item() == pytest.approx((-1.3 + 2 - 0.5 + 0.8) / 4 + 3 * 2)
    assert dict(zip(SUM_NAMES, sums.tolist(), strict=True)) == pytest.approx(
        {
            "policy_loss": 1.0,
            "kl_old_k1": 0.0,
            "kl_old_k3": 2 * (2 - 1 - two) + 2 * (0.5 - 1 + two),
            "kl_reference_k1": 4 * two,
            "kl_reference_k3": 4 * (0.5 - 1 + two),
            "kl_reference_exact": 0.0,
            "clip_low": 1.0,
            "clip_high": 1.0,
            "clip_dual": 0.0,
            "ratio": 5.0,
            "entropy": 2.5,
            "ptx_nll": 2.0,
        }
    )
    assert extremes.tolist() == pytest.approx([two, two])


def test_kl_to_the_old_policy_has_the_sign_of_the_old_policy_s_samples():
    """The token lost log 3 since it was drawn: k1(old || policy) = log 3, and the ratio fell by as much."""
    rows = make_rows(old_logprobs=[-1.0], advantages=[1.0], policy_weight=[1.0])
    logprobs = torch.tensor([-1 - math.log(3)], dtype=torch.float64)
    nothing = torch.zeros_like(logprobs)
    _, sums, extremes = combine(logprobs, nothing, nothing, rows, COEFFICIENTS)
    assert sums[SUM_NAMES.index("kl_old_k1")].item() == pytest.approx(math.log(3))
    assert extremes.tolist() == pytest.approx([-math.log(3), math.log(3)])
    # A good token made less likely is not cut.
    assert sums[SUM_NAMES.index("clip_low")] == 0


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("log_ratio", [-25.0, -0.5, -0.1, 0.1, 0.223, 0.5, 25.0])
def test_the_gradient_is_right_in_every_regime_of_the_ratio(log_ratio, advantage):
    """Below, inside and above the clip, between 1.2 and 1.3 (only the upper bound is 1.3), and beyond the clamp."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    rows = make_rows(advantages=[advantage] * 3, policy_weight=[1 / 3] * 3)
    logprobs = reference.score(hidden, weight, ScoreRows(rows.targets, rows.temperature)).logprobs
    rows = dataclasses.replace(rows, old_logprobs=logprobs - log_ratio)
    want = torch.autograd.grad(reference.policy_loss(hidden, weight, rows, COEFFICIENTS).loss, (hidden, weight))
    got = torch.autograd.grad(chunked.policy_loss(hidden, weight, rows, COEFFICIENTS).loss, (hidden, weight))
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-13)
    moves = abs(log_ratio) < 20 and (log_ratio < math.log(1.3) if advantage > 0 else log_ratio > math.log(0.8))
    assert bool(got[0].any()) == moves


@pytest.mark.parametrize("kl", ["k1", "k2", "k3", "k3_weighted"])
def test_slopes_in_float32_keep_their_digits_at_any_log_ratio(kl):
    """Against autograd through `combine` in float64; at 16 nats e^r alone is 9e6."""
    r = torch.tensor([-19.6, -16.0, -3.0, -1e-3, 1e-3, 3.0, 12.0, 16.0, 19.6, 25.0], dtype=torch.float64)
    logprobs = torch.full_like(r, -2.0).requires_grad_()
    rows = make_rows(old_logprobs=[-2.1] * 10, reference_logprobs=r - 2, policy_weight=[1.0] * 10)
    coefficients = dataclasses.replace(COEFFICIENTS, kl=kl, kl_coef=1.0)
    nothing = torch.zeros_like(r)
    (want,) = torch.autograd.grad(combine(logprobs, nothing, nothing, rows, coefficients)[0], logprobs)
    got = loss_slopes(logprobs.detach().float(), rows, coefficients).logprob
    torch.testing.assert_close(got.double(), want, rtol=2e-6, atol=3e-7)  # 3e-7: a logprob of -2 in float32
