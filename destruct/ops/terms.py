"""The part of the loss that is per row and small: loss, figures and slopes from what the vocabulary side gave.

Every implementation shares it.  Legend: N rows, K = len(SUM_NAMES).
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from destruct.ops.rows import LossCoefficients, LossRows
from destruct.ppo.kl import ESTIMATORS, LOG_RATIO_CLAMP, SLOPES, clamp_log_ratio, k1, k3
from destruct.ppo.loss import clipped_policy_loss


@dataclass(frozen=True, slots=True)
class ResponseTerms:
    """What the PPO terms read, 0 with zero gradient outside response rows, whatever those rows hold."""

    log_ratio: Tensor  # (N,) nats, log pi - log pi_old, before its clamp
    reference_log_ratio: Tensor  # (N,) nats, log reference - log pi, before its clamp
    advantages: Tensor  # (N,)


def response_terms(logprobs: Tensor, rows: LossRows) -> ResponseTerms:
    """Terms of N rows in the dtype of logprobs (N,), nats."""
    response, dtype = rows.response, logprobs.dtype
    return ResponseTerms(
        log_ratio=torch.where(response, logprobs - rows.old_logprobs.detach().to(dtype), 0.0),
        reference_log_ratio=torch.where(response, rows.reference_logprobs.detach().to(dtype) - logprobs, 0.0),
        advantages=torch.where(response, rows.advantages.detach().to(dtype), 0.0),
    )


def combine(
    logprobs: Tensor, entropy: Tensor, exact_kl: Tensor, rows: LossRows, coefficients: LossCoefficients
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and figures of N rows from what the vocabulary side gave.

    Args:
        logprobs: (N,) float32 or float64, nats; sets the dtype of the arithmetic.
        entropy: (N,) same dtype, nats.
        exact_kl: (N,) same dtype, nats, in the direction of the loss; read where the coefficients ask for it.
        rows: N rows.
        coefficients: of the loss.

    Returns:
        loss (), sums (K,) and extremes (2,) as LossOutput has them; differentiable in the first three arguments.
    """
    dtype = logprobs.dtype
    response = response_terms(logprobs, rows)
    clipped = clipped_policy_loss(
        response.log_ratio,
        response.advantages,
        coefficients.clip_low,
        coefficients.clip_high,
        coefficients.dual_clip,
    )
    exact_kl = torch.where(rows.response, exact_kl, 0.0) if coefficients.exact_kl else torch.zeros_like(logprobs)
    penalty = exact_kl if coefficients.exact_kl else _penalty(response, coefficients.kl)
    bonus = torch.where(rows.response, entropy, 0.0)
    nll = torch.where(rows.ptx, -logprobs, 0.0)
    terms = clipped + coefficients.kl_coef * penalty - coefficients.entropy_coef * bonus
    weighted = rows.policy_weight.detach().to(dtype) * terms + rows.ptx_weight.detach().to(dtype) * nll
    # float64: the sum over rows then costs no digit, and does not depend on how the rows were chunked.
    loss = weighted.sum(dtype=torch.float64).to(dtype)
    with torch.no_grad():
        sums = _sums(response, clipped, exact_kl, bonus, nll, rows, coefficients)
        extremes = _extremes(response.log_ratio, rows.response)
    return loss, sums, extremes


class Slopes(NamedTuple):
    """Derivatives of a scalar in what the vocabulary side gave, each (N,); None is 0 on every row."""

    logprob: Tensor
    entropy: Tensor | None = None
    exact_kl: Tensor | None = None
    log_sum_exp: Tensor | None = None

    @property
    def needed(self) -> Tensor:
        """(N,) bool, False on rows whose gradient is exactly 0."""
        needed = self.logprob != 0
        for slope in self[1:]:
            needed = needed if slope is None else needed | (slope != 0)
        return needed


def loss_slopes(logprobs: Tensor, rows: LossRows, coefficients: LossCoefficients) -> Slopes:
    """Derivatives of `combine`'s loss at logprobs (N,), with the subgradients that autograd takes at its corners."""
    dtype = logprobs.dtype
    response, weight = response_terms(logprobs, rows), rows.policy_weight.to(dtype)
    ratio = clamp_log_ratio(response.log_ratio).exp()
    advantages, clamped = response.advantages, response.log_ratio.abs() > LOG_RATIO_CLAMP
    held = ((advantages > 0) & (ratio > 1 + coefficients.clip_high)) | clamped
    held = held | ((advantages < 0) & (ratio < 1 - coefficients.clip_low))
    if coefficients.dual_clip is not None:
        held = held | ((advantages < 0) & (ratio > coefficients.dual_clip))
    slope = torch.where(held, 0.0, -advantages * ratio)
    if coefficients.kl not in ("none", "exact", "exact_forward"):
        slope = slope + coefficients.kl_coef * _penalty_slope(response, ratio, clamped, coefficients.kl)
    return Slopes(
        logprob=weight * slope - rows.ptx_weight.to(dtype),
        entropy=-coefficients.entropy_coef * weight if coefficients.entropy_coef else None,
        exact_kl=coefficients.kl_coef * weight if coefficients.exact_kl else None,
    )


def _penalty(response: ResponseTerms, kl: str) -> Tensor:
    if kl == "none":
        return torch.zeros_like(response.log_ratio)
    if kl == "k3_weighted":
        return clamp_log_ratio(response.log_ratio).exp() * k3(response.reference_log_ratio)
    return ESTIMATORS[kl](response.reference_log_ratio)


def _penalty_slope(response: ResponseTerms, ratio: Tensor, ratio_clamped: Tensor, kl: str) -> Tensor:
    r = clamp_log_ratio(response.reference_log_ratio)
    clamped = response.reference_log_ratio.abs() > LOG_RATIO_CLAMP
    if kl == "k3_weighted":
        # The product rule; where neither is clamped, e^r cancels, and leaves no digit of a large r unless by hand.
        by_ratio = torch.where(ratio_clamped, 0.0, ratio * k3(r))
        one_sided = by_ratio + torch.where(clamped, 0.0, ratio * SLOPES["k3"](r))
        return torch.where(ratio_clamped | clamped, one_sided, -ratio * r)
    return torch.where(clamped, 0.0, SLOPES[kl](r))


def _sums(
    response: ResponseTerms,
    clipped: Tensor,
    exact_kl: Tensor,
    bonus: Tensor,
    nll: Tensor,
    rows: LossRows,
    coefficients: LossCoefficients,
) -> Tensor:
    """(K,) float64, in the order of SUM_NAMES."""
    ratio = clamp_log_ratio(response.log_ratio).exp()
    dual_clip = math.inf if coefficients.dual_clip is None else coefficients.dual_clip
    per_row = torch.stack(
        [
            clipped,
            k1(response.log_ratio),
            k3(response.log_ratio),
            k1(response.reference_log_ratio),
            k3(response.reference_log_ratio),
            exact_kl,
            (response.advantages < 0) & (ratio < 1 - coefficients.clip_low),
            (response.advantages > 0) & (ratio > 1 + coefficients.clip_high),
            (response.advantages < 0) & (ratio > dual_clip),
            ratio,
            bonus,
        ]
    )
    sums = torch.where(rows.response, per_row, 0.0).sum(1, dtype=torch.float64)
    return torch.cat([sums, nll.sum(dtype=torch.float64)[None]])


def _extremes(log_ratio: Tensor, response: Tensor) -> Tensor:
    """(2,) largest log ratio and largest -log ratio.  The appended -inf answers for no rows, on the device."""
    both = torch.stack([log_ratio, -log_ratio]).masked_fill(~response, -math.inf)
    return torch.cat([both, both.new_full((2, 1), -math.inf)], dim=1).amax(1)
