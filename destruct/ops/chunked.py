"""The fused ops in plain torch, a chunk of rows at a time: no tensor of N x V elements ever exists.

Gradients are computed in the forward, where the logits of a chunk are at hand: three products per chunk (logits, hidden
gradient, weight gradient) instead of the four of a recomputation, four instead of five with the reference's logits, and
nothing of size N x V waits for the backward.

Beside its inputs and outputs a call holds `rows_per_chunk` rows of V logits, two such chunks with an exact KL; a few
blocks of 4 MiB; and, where more than one chunk adds to the weight's gradient, (V, H) in float32.
Legend: N rows, C rows of a chunk, H hidden width, V vocabulary.
"""

import torch
from torch import Tensor

from destruct.ops import autograd
from destruct.ops.autograd import GivenSlopes, LossSlopes, Said
from destruct.ops.checks import check_inputs, check_reference
from destruct.ops.gradients import Gradients
from destruct.ops.precision import own_precision
from destruct.ops.row_blocks import Softmax
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

CHUNK_MIB = 64
MAX_CHUNK_ROWS = 1024
ROW_MULTIPLE = 16


def rows_per_chunk(vocab: int, dtype: torch.dtype, mib: int | None = None) -> int:
    """Rows of a chunk, from 16 to 1024 in steps of 16, whose logits fit into `mib` MiB (16 rows may take more).

    It depends on the model and the config alone, never on the free memory nor on N: the last bits of the weight
    gradient depend on it, and a resumed run must repeat them.

    Args:
        vocab: V, at least 1.
        dtype: of hidden states and weight.
        mib: 64 when None.
    """
    fitting = (mib or CHUNK_MIB) * 2**20 // (vocab * dtype.itemsize)
    return max(ROW_MULTIPLE, min(MAX_CHUNK_ROWS, fitting // ROW_MULTIPLE * ROW_MULTIPLE))


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
    """PPO, KL, entropy and PTX loss of N rows, as `destruct.ops.reference.policy_loss` defines it.

    bfloat16 inputs are multiplied in bfloat16 (logits rounded to it, but for the targets'); everything per row is
    float32.  The gradient is first-order only.  Under `no_grad`, or where neither hidden nor weight asks, none is
    computed or kept.

    Args:
        hidden: (N, H) bfloat16, float32 or float64.
        weight: (V, H) same dtype; pass the Parameter itself, so that engines see its use.
        rows: N rows.
        coefficients: of the loss.
        reference: for the exact KL alone.
        logit_map: what the model does to its products.
        chunk_rows: rows of a chunk, >= 1; `rows_per_chunk` when None.

    Returns:
        LossOutput; its `logprobs` equal those of `score` on the same N rows bit for bit.

    Raises:
        ValueError: the arguments do not fit together, or a target is outside [0, V) (on the CPU).
    """
    check_inputs(hidden, weight, rows.targets)
    check_reference(hidden, weight, rows, coefficients, reference)
    chunk_rows = chunk_rows or rows_per_chunk(weight.shape[0], weight.dtype)
    return autograd.policy_loss(_walk, hidden, weight, rows, coefficients, reference, logit_map, chunk_rows)


@own_precision
def score(
    hidden: Tensor,
    weight: Tensor,
    rows: ScoreRows,
    logit_map: LogitMap = PRODUCTS,
    chunk_rows: int | None = None,
) -> ScoreOutput:
    """Logprob of each target, entropy and log-sum-exp of each row.

    The gradient, for any upstream one, is worked out by multiplying again in the backward: four products in all, and
    nothing of size N x V kept.  It reads hidden and weight then, so engines must have the weight at hand.

    Args:
        hidden: (N, H) bfloat16, float32 or float64.
        weight: (V, H) same dtype; pass the Parameter itself.
        rows: N rows.
        logit_map: what the model does to its products.
        chunk_rows: rows of a chunk, >= 1; `rows_per_chunk` when None.

    Returns:
        ScoreOutput, nats.

    Raises:
        ValueError: hidden, weight and rows do not fit together, or a target is outside [0, V) (on the CPU).
    """
    check_inputs(hidden, weight, rows.targets)
    chunk_rows = chunk_rows or rows_per_chunk(weight.shape[0], weight.dtype)
    return autograd.score(_walk, hidden, weight, rows, logit_map, chunk_rows)


def _walk(
    hidden: Tensor,
    weight: Tensor,
    rows: ScoreRows,
    logit_map: LogitMap,
    chunk_rows: int,
    slopes: LossSlopes | GivenSlopes | None = None,
    reference: ReferenceStates | None = None,
    gradients: Gradients | None = None,
) -> Said:
    """Go through the rows once, and through the products' gradient where `gradients` and `slopes` are given."""
    said, kl = Said(*hidden.new_zeros(4, len(hidden), dtype=row_dtype(hidden.dtype))), slopes.kl if slopes else "none"
    policy = Softmax(min(chunk_rows, len(hidden)), weight, logit_map)
    anchor = policy if reference is None else Softmax(min(chunk_rows, len(hidden)), reference.weight, logit_map)
    for first, last in _ranges(0, len(hidden), chunk_rows):
        policy.multiply(hidden[first:last], weight, rows.targets[first:last])
        if reference is not None:
            states = reference.hidden[first:last]
            anchor.multiply(states, reference.weight, rows.targets[first : first + len(states)])
        for start, stop in _ranges(first, last, policy.block_rows):
            block = slice(start, stop)
            policy.normalise(start - first, stop - first, rows.temperature[block])
            if reference is not None:
                anchor.normalise(start - first, stop - first, rows.temperature[block])
                said.exact_kl[block] = policy.divergence(anchor, kl)
            for column, values in zip(said, (policy.logprobs, policy.entropy, policy.log_sum_exp), strict=False):
                column[block] = values
            if gradients is not None and slopes is not None:
                given = slopes.at(policy.logprobs, start, stop)
                d_logits = policy.differentiate(given, kl, said.exact_kl[block], anchor)
                gradients.put(policy.logits, d_logits, given.needed, start - first)
        if gradients is not None:
            gradients.multiply(first, last, policy.logits)
    return said


def _ranges(start: int, stop: int, step: int) -> list[tuple[int, int]]:
    return [(first, min(first + step, stop)) for first in range(start, stop, step)]
