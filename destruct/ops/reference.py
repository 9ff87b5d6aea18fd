"""The definition of the fused ops: plain torch, full logits (N, V), autograd.

Every other implementation is tested against this file in float64.  It is meant to be read, and run on small shapes.
Legend: N rows, H hidden width, V vocabulary, K = len(SUM_NAMES).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from destruct.ops.rows import LossCoefficients, LossOutput, LossRows, ScoreOutput, ScoreRows, check_inputs, row_dtype
from destruct.ppo.kl import ESTIMATORS, clamp_log_ratio, k1, k3
from destruct.ppo.loss import clipped_policy_loss


def policy_loss(hidden: Tensor, weight: Tensor, rows: LossRows, coefficients: LossCoefficients) -> LossOutput:
    """PPO, KL, entropy and PTX loss of N rows.

        z    = hidden weight^T / temperature,   logp = log_softmax(z)[target],   E = -sum_j p_j log p_j
        loss = sum_i policy_weight_i (clipped_i + kl_coef k_i - entropy_coef E_i)  -  sum_i ptx_weight_i logp_i

    with `clipped` of `clipped_policy_loss` and k of k2 or k3 at r = reference_logprobs - logp, or 0.

    Args:
        hidden: (N, H) bfloat16, float32 or float64; raised to `row_dtype` before the product.
        weight: (V, H) same dtype.
        rows: N rows.
        coefficients: of the loss.

    Returns:
        LossOutput whose `loss` carries the gradient to hidden and weight.  With N = 0 it is a connected zero.

    Raises:
        ValueError: hidden, weight and rows do not fit together, or a target is outside [0, V) (on the CPU).

    Source: arXiv:1707.06347, eq. 7; dual clip: arXiv:1912.09729, eq. 5; PTX: arXiv:2203.02155, eq. 2.
    """
    check_inputs(hidden, weight, rows.targets)
    # Harmless contents, not only a zero weight: 0 * NaN in a backward product would be NaN.
    used = torch.where(rows.active[:, None], hidden, 0.0)
    temperature = torch.where(rows.active, rows.temperature, 1.0)
    logprobs, entropy = _score(used, weight, ScoreRows(rows.targets, temperature))
    loss, sums, extremes = combine(logprobs, entropy, rows, coefficients)
    return LossOutput(loss, sums, extremes, score(hidden, weight, rows.score_rows()).logprobs)


@torch.no_grad()
def score(hidden: Tensor, weight: Tensor, rows: ScoreRows) -> ScoreOutput:
    """Logprob of each target and entropy of each row's distribution, without gradient.

    Args:
        hidden: (N, H) bfloat16, float32 or float64; raised to `row_dtype` before the product.
        weight: (V, H) same dtype.
        rows: N rows.

    Returns:
        ScoreOutput, nats.

    Raises:
        ValueError: hidden, weight and rows do not fit together, or a target is outside [0, V) (on the CPU).
    """
    check_inputs(hidden, weight, rows.targets)
    return ScoreOutput(*_score(hidden, weight, rows))


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
        log_ratio=torch.where(response, logprobs - rows.old_logprobs.to(dtype), 0.0),
        reference_log_ratio=torch.where(response, rows.reference_logprobs.to(dtype) - logprobs, 0.0),
        advantages=torch.where(response, rows.advantages.to(dtype), 0.0),
    )


def combine(
    logprobs: Tensor, entropy: Tensor, rows: LossRows, coefficients: LossCoefficients
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and figures of N rows from what the vocabulary side gave: the part that every implementation shares.

    Args:
        logprobs: (N,) float32 or float64, nats; sets the dtype of the arithmetic.
        entropy: (N,) same dtype, nats.
        rows: N rows.
        coefficients: of the loss.

    Returns:
        loss (), sums (K,) and extremes (2,) as LossOutput has them; differentiable in logprobs and entropy.
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
    penalty = _penalty(response.reference_log_ratio, coefficients)
    bonus = torch.where(rows.response, entropy, 0.0)
    nll = torch.where(rows.ptx, -logprobs, 0.0)
    terms = clipped + coefficients.kl_coef * penalty - coefficients.entropy_coef * bonus
    weighted = rows.policy_weight.to(dtype) * terms + rows.ptx_weight.to(dtype) * nll
    # float64: the sum over rows then costs no digit, and does not depend on how the rows were chunked.
    loss = weighted.sum(dtype=torch.float64).to(dtype)
    with torch.no_grad():
        sums = _sums(response, clipped, bonus, nll, rows, coefficients)
        extremes = _extremes(response.log_ratio, rows.response)
    return loss, sums, extremes


def _score(hidden: Tensor, weight: Tensor, rows: ScoreRows) -> tuple[Tensor, Tensor]:
    dtype = row_dtype(hidden.dtype)
    logits = (hidden.to(dtype) @ weight.to(dtype).t()) / rows.temperature.to(dtype)[:, None]
    log_probabilities = logits.log_softmax(1)
    logprobs = log_probabilities.gather(1, rows.targets[:, None]).squeeze(1)
    return logprobs, -(log_probabilities.exp() * log_probabilities).sum(1)


def _penalty(reference_log_ratio: Tensor, coefficients: LossCoefficients) -> Tensor:
    if coefficients.kl_estimator == "none":
        return torch.zeros_like(reference_log_ratio)
    return ESTIMATORS[coefficients.kl_estimator](reference_log_ratio)


def _sums(
    response: ResponseTerms,
    clipped: Tensor,
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
    """(2,) largest ratio and largest |log ratio|.  The appended 0 answers for no response rows, on the device."""
    ratio = torch.where(response, clamp_log_ratio(log_ratio).exp(), 0.0)
    both = torch.stack([ratio, log_ratio.abs()])
    return torch.cat([both, both.new_zeros(2, 1)], dim=1).amax(1)
