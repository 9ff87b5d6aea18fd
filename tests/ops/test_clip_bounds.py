"""Two-sided clip and dual clip, through the vocabulary, against the papers' objective written out in float64."""

import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F

from destruct.ops import chunked, reference
from destruct.ops.rows import SUM_NAMES, LossCoefficients, LossRows
from destruct.ops.terms import combine

V, H = 11, 5
LOW, HIGH, DUAL = 0.2, 0.5, 3.0
BOUNDED = LossCoefficients(clip_low=LOW, clip_high=HIGH, kl_coef=0.0, kl="none", entropy_coef=0.0, dual_clip=DUAL)
RATIOS = [corner * (1 + side) for corner in (1 - LOW, 1 + LOW, 1 + HIGH, DUAL) for side in (-1e-6, 1e-6)]
RATIOS += [math.exp(-25), 0.3, 1.0, 2.0, 10.0, math.exp(19), math.exp(25)]
ADVANTAGES = [1.5, -0.7, 0.0]


def surroundings() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, LossRows]:
    """hidden, weight, logprobs of the targets by F.cross_entropy, and rows: every ratio with every advantage."""
    generator = torch.Generator().manual_seed(0)
    ratios, advantages = torch.cartesian_prod(*(torch.tensor(x, dtype=torch.float64) for x in (RATIOS, ADVANTAGES))).T
    count = len(ratios)
    hidden = torch.randn(count, H, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(V, H, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(V, (count,), generator=generator)
    logprobs = -F.cross_entropy(hidden @ weight.t(), targets, reduction="none")
    share = torch.rand(count, generator=generator, dtype=torch.float64) + 0.1
    zero = torch.zeros(count, dtype=torch.float64)
    old = logprobs.detach() - ratios.log()
    return hidden, weight, logprobs, ratios, LossRows(targets, zero + 1, old, zero, advantages, share, zero)


def objective(ratio: torch.Tensor, a: torch.Tensor, low: float, high: float, dual: float) -> torch.Tensor:
    """What is to be maximised, in the papers' own order: eq. 7 of 1707.06347, then eq. 5 of 1912.09729 where A < 0."""
    clipped = torch.min(ratio * a, torch.clip(ratio, 1 - low, 1 + high) * a)
    return torch.where(a < 0, torch.max(clipped, dual * a), clipped)


@pytest.mark.parametrize("implementation", [reference, chunked])
@pytest.mark.parametrize("dual", [DUAL, 1.7, 1.35, 1e30])
def test_loss_and_gradients_are_those_of_the_papers_on_either_side_of_every_corner(implementation, dual):
    """Eq. 5 holds for every c > 1, below the upper bound too.  Beyond a log ratio of 20 the clamp
    holds the ratio still, so the formula is given the clamped one."""
    hidden, weight, logprobs, _, rows = surroundings()
    ratio = (logprobs - rows.old_logprobs).clamp(-20, 20).exp()
    want = -(rows.policy_weight * objective(ratio, rows.advantages, LOW, HIGH, dual)).sum()
    out = implementation.policy_loss(hidden, weight, rows, dataclasses.replace(BOUNDED, dual_clip=dual))
    torch.testing.assert_close(out.loss, want, rtol=1e-12, atol=0)
    got, right = (torch.autograd.grad(loss, (hidden, weight)) for loss in (out.loss, want))
    torch.testing.assert_close(got, right, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("implementation", [reference, chunked])
def test_exactly_the_rows_beyond_a_bound_that_binds_them_have_no_gradient(implementation):
    """A > 0 above 1.5, A < 0 below 0.8 and above 3, A = 0, and beyond the clamp; the upper bound is not 1.2."""
    hidden, weight, _, ratios, rows = surroundings()
    (d_hidden,) = torch.autograd.grad(implementation.policy_loss(hidden, weight, rows, BOUNDED).loss, hidden)
    moves = []
    for ratio, advantage in zip(ratios.tolist(), rows.advantages.tolist(), strict=True):
        lowest, highest = {1.5: (math.exp(-20), 1.5), -0.7: (0.8, 3.0), 0.0: (1.0, 1.0)}[advantage]
        moves.append(lowest < ratio < highest)
    assert d_hidden.abs().amax(1).gt(0).tolist() == moves


def combined(ratios: list[float], advantages: list[float], **bounds: float | None) -> tuple[list[float], dict]:
    """Policy loss of each row by itself, and the sums of all by name."""
    log_ratios, a = torch.tensor(ratios, dtype=torch.float64).log(), torch.tensor(advantages, dtype=torch.float64)
    zero, coefficients = torch.zeros_like(a), dataclasses.replace(BOUNDED, **bounds)
    rows = LossRows(torch.zeros(len(a), dtype=torch.int64), zero + 1, zero, zero, a, zero + 1, zero)
    alone = [
        combine(log_ratios[i : i + 1], zero[:1], zero[:1], rows.part(i, i + 1), coefficients)[0].item()
        for i in range(len(a))
    ]
    _, sums, _ = combine(log_ratios, zero, zero, rows, coefficients)
    return alone, dict(zip(SUM_NAMES, sums.tolist(), strict=True))


def test_the_dual_clip_of_six_rows_worked_by_hand():
    """Bounds 0.8, 1.5 and 3.  A = -2: 4 costs 2 * 3 and not 2 * 4, 2.5 costs 5, 0.5 costs 2 * 0.8; A = 2: no more than
    1.5 * 2 is gained."""
    ratios, advantages = [4.0, 2.5, 0.5, 4.0, 1.4, 4.0], [-2.0, -2.0, -2.0, 2.0, 2.0, 0.0]
    losses, sums = combined(ratios, advantages)
    assert losses == pytest.approx([6.0, 5.0, 1.6, -3.0, -2.8, 0.0])
    assert [sums[name] for name in ("clip_low", "clip_high", "clip_dual")] == [1, 1, 1]
    losses, sums = combined(ratios, advantages, dual_clip=None)
    assert losses == pytest.approx([8.0, 5.0, 1.6, -3.0, -2.8, 0.0])
    assert [sums[name] for name in ("clip_low", "clip_high", "clip_dual")] == [1, 1, 0]


@pytest.mark.parametrize("implementation", [reference, chunked])
def test_a_dual_clip_that_no_ratio_reaches_changes_not_a_bit(implementation):
    results = []
    for dual in (None, 1e30):
        hidden, weight, _, _, rows = surroundings()
        out = implementation.policy_loss(hidden, weight, rows, dataclasses.replace(BOUNDED, dual_clip=dual))
        results.append((*out, *torch.autograd.grad(out.loss, (hidden, weight))))
    assert all(torch.equal(off, far) for off, far in zip(*results, strict=True))


@pytest.mark.parametrize("dual_clip", [1.0, -3.0, math.inf, math.nan])
def test_a_dual_clip_that_is_not_a_number_above_one_is_refused(dual_clip):
    with pytest.raises(ValueError, match="dual_clip"):
        dataclasses.replace(BOUNDED, dual_clip=dual_clip)
