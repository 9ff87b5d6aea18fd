"""The definition of the fused ops: plain torch, full logits (N, V), autograd.

Every other implementation is tested against this file in float64.  It is meant to be read, and run on small shapes.
Legend: N rows, H hidden width, V vocabulary.
"""

import sys

import torch
from torch import Tensor

from destruct.ops.checks import check_inputs, check_reference
from destruct.ops.precision import own_precision
from destruct.ops.rows import (
    PRODUCTS,
    LogitMap,
    LossCoefficients,
    LossOutput,
    LossRows,
    ReferenceStates,
    ScoreOutput,
    ScoreRows,
    row_dtype,
)
from destruct.ops.terms import combine

LOWEST = -1e30
"""Stands for a logprob of -inf where it is multiplied by its probability, 0."""


def rows_per_chunk(vocab: int, dtype: torch.dtype, mib: int | None = None) -> int:
    """The definition has no chunks: all rows, whatever the arguments are."""
    return sys.maxsize


@own_precision
def policy_loss(
    hidden: Tensor,
    weight: Tensor,
    rows: LossRows,
    coefficients: LossCoefficients,
    reference: ReferenceStates | None = None,
    logit_map: LogitMap = PRODUCTS,
    chunk_rows: int | None = None,
) -> LossOutput:
    """PPO, KL, entropy and PTX loss of N rows.

        z    = logit_map(hidden weight^T) / temperature,  p = softmax(z),  logp = log p[target],  E = -sum_j p_j log p_j
        loss = sum_i policy_weight_i (clipped_i + kl_coef k_i - entropy_coef E_i)  -  sum_i ptx_weight_i logp_i

    with `clipped` of `clipped_policy_loss`, ratio = exp(logp - old_logprobs) and r = reference_logprobs - logp:

    | kl            | k                                                                                  |
    |---------------|------------------------------------------------------------------------------------|
    | none          | 0                                                                                  |
    | k1, k2, k3    | -r, r^2 / 2, e^r - 1 - r                                                           |
    | k3_weighted   | ratio (e^r - 1 - r), whose gradient is that of KL(policy || reference) off policy too |
    | exact         | sum_j p_j (log p_j - log q_j), q the reference at the same temperature             |
    | exact_forward | sum_j q_j (log q_j - log p_j)                                                      |

    Args:
        hidden: (N, H) bfloat16, float32 or float64; raised to `row_dtype` before the product.
        weight: (V, H) same dtype.
        rows: N rows.
        coefficients: of the loss.
        reference: for the exact KL alone; the logit map is the reference's too.
        logit_map: what the model does to its products.
        chunk_rows: not read; the definition has no chunks.

    Returns:
        LossOutput whose `loss` carries the gradient to hidden and weight.  With N = 0 it is a connected zero.

    Raises:
        ValueError: the arguments do not fit together, or a target is outside [0, V) (on the CPU).

    Source: arXiv:1707.06347, eq. 7; dual clip: arXiv:1912.09729, eq. 5; PTX: arXiv:2203.02155, eq. 2; estimators of the
    KL: `destruct.ppo.kl`.
    """
    check_inputs(hidden, weight, rows.targets)
    check_reference(hidden, weight, rows, coefficients, reference)
    temperature = torch.where(rows.active, rows.temperature, 1.0)
    log_p = _log_softmax(hidden, weight, temperature, logit_map, rows.active)
    logprobs, entropy = _of_target(log_p, rows.targets), _entropy(log_p)
    kl = torch.zeros_like(logprobs)
    if reference is not None:
        count = reference.hidden.shape[0]
        states, head, read = reference.hidden.detach(), reference.weight.detach(), rows.response[:count]
        log_q = _log_softmax(states, head, temperature[:count], logit_map, read)
        pair = (log_p[:count], log_q) if coefficients.kl == "exact" else (log_q, log_p[:count])
        kl = torch.cat([_divergence(*pair), kl[count:]])
    loss, sums, extremes = combine(logprobs, entropy, kl, rows, coefficients)
    with torch.no_grad():
        all_logprobs = score(hidden, weight, rows.score_rows(), logit_map).logprobs
    return LossOutput(loss, sums, extremes, all_logprobs)


@own_precision
def score(
    hidden: Tensor,
    weight: Tensor,
    rows: ScoreRows,
    logit_map: LogitMap = PRODUCTS,
    chunk_rows: int | None = None,
) -> ScoreOutput:
    """Logprob of each target, entropy and log-sum-exp of each row.

    Args:
        hidden: (N, H) bfloat16, float32 or float64; raised to `row_dtype` before the product.
        weight: (V, H) same dtype.
        rows: N rows.
        logit_map: what the model does to its products.
        chunk_rows: not read.

    Returns:
        ScoreOutput, nats; differentiable in hidden and weight.

    Raises:
        ValueError: hidden, weight and rows do not fit together, or a target is outside [0, V) (on the CPU).
    """
    check_inputs(hidden, weight, rows.targets)
    logits = _logits(hidden, weight, rows.temperature, logit_map)
    log_p = logits.log_softmax(1)
    return ScoreOutput(_of_target(log_p, rows.targets), _entropy(log_p), logits.logsumexp(1))


def _logits(hidden: Tensor, weight: Tensor, temperature: Tensor, logit_map: LogitMap) -> Tensor:
    dtype = row_dtype(hidden.dtype)
    logits = logit_map.scale * (hidden.to(dtype) @ weight.to(dtype).t())
    if logit_map.soft_cap is not None:
        logits = logit_map.soft_cap * (logits / logit_map.soft_cap).tanh()
    return logits / temperature.to(dtype)[:, None]


def _log_softmax(hidden: Tensor, weight: Tensor, temperature: Tensor, logit_map: LogitMap, read: Tensor) -> Tensor:
    """(N, V) log-probabilities; rows that are not `read` are uniform, whatever they hold, without a gradient."""
    # Harmless contents, not only a zero weight: 0 * NaN in a backward product would be NaN.
    logits = _logits(torch.where(read[:, None], hidden, 0.0), weight, temperature, logit_map)
    return torch.where(read[:, None], logits, 0.0).log_softmax(1)


def _of_target(log_p: Tensor, targets: Tensor) -> Tensor:
    return log_p.gather(1, targets[:, None]).squeeze(1)


def _entropy(log_p: Tensor) -> Tensor:
    return -(log_p.exp() * log_p.clamp(min=LOWEST)).sum(1)


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """(N,) nats, KL(p || q)."""
    return (log_p.exp() * (log_p.clamp(min=LOWEST) - log_q.clamp(min=LOWEST))).sum(1)
