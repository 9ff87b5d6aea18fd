"""The fused ops on a GPU: products by the vendor's library into float32, and one kernel over the rows between them.

The passes are those of `destruct.ops.chunked`: gradients in the forward, a chunk of rows at a time, three products a
chunk, four with the reference's logits.  Logits stay float32, which no product of bfloat16 rounds.  The kernels also
run under Triton's interpreter on the CPU.

Beside its inputs and outputs a call holds the logits of `rows_per_chunk` rows and their gradient, the reference's too
with an exact KL, and, where more than one chunk adds to the weight's gradient, (V, H) in float32.
Legend: N rows, C rows of a chunk, H hidden width, V vocabulary.
"""

import torch
import triton
from torch import Tensor

from destruct.ops import autograd
from destruct.ops.autograd import GivenSlopes, LossSlopes, Said
from destruct.ops.checks import check_inputs, check_reference
from destruct.ops.gradients import Gradients
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
)
from destruct.ops.triton_rows import RowPass, row_buffer
from destruct.ops.triton_score import score_without_logits

CHUNK_MIB = 1024
MAX_CHUNK_ROWS = 4096
ROW_MULTIPLE = 128


def rows_per_chunk(vocab: int, dtype: torch.dtype, mib: int | None = None) -> int:
    """Rows of a chunk, from 128 to 4096 in steps of 128, that fit into `mib` MiB (128 rows may take more).

    A row takes its float32 logits and their gradient in `dtype`.  As with `chunked`, nothing but the model and the
    config decides.

    Args:
        vocab: V, at least 1.
        dtype: of hidden states and weight.
        mib: 1024 when None.
    """
    fitting = (mib or CHUNK_MIB) * 2**20 // (vocab * (torch.float32.itemsize + dtype.itemsize))
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

    The gradient is first-order only.  Under `no_grad`, or where neither hidden nor weight asks, none is computed.

    Args:
        hidden: (N, H) bfloat16 or float32, on a GPU.
        weight: (V, H) same dtype; pass the Parameter itself, so that engines see its use.
        rows: N rows.
        coefficients: of the loss.
        reference: for the exact KL alone.
        logit_map: what the model does to its products.
        chunk_rows: rows of a chunk, >= 1; `rows_per_chunk` when None.

    Returns:
        LossOutput; its `logprobs` equal those of `score` on the same N rows, `as_trained`, bit for bit.  A target
        outside [0, V) gives nan.

    Raises:
        ValueError: the arguments do not fit together, or are not what this implementation takes.
    """
    check_inputs(hidden, weight, rows.targets)
    check_reference(hidden, weight, rows, coefficients, reference)
    _check_ours(hidden)
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

    Without a gradient and not `as_trained`, no logit is ever stored.  Otherwise chunks of logits are made as in
    training; the gradient is worked out by multiplying again in the backward.

    Args:
        hidden: (N, H) bfloat16 or float32, on a GPU.
        weight: (V, H) same dtype; pass the Parameter itself.
        rows: N rows.
        logit_map: what the model does to its products.
        chunk_rows: rows of a chunk, >= 1; `rows_per_chunk` when None.

    Returns:
        ScoreOutput, nats.

    Raises:
        ValueError: the arguments do not fit together, or are not what this implementation takes.
    """
    check_inputs(hidden, weight, rows.targets)
    _check_ours(hidden)
    wants_gradient = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    if not wants_gradient and not rows.as_trained:
        with torch.no_grad():
            return score_without_logits(hidden, weight, rows, logit_map)
    chunk_rows = chunk_rows or rows_per_chunk(weight.shape[0], weight.dtype)
    return autograd.score(_walk, hidden, weight, rows, logit_map, chunk_rows)


def _check_ours(hidden: Tensor) -> None:
    if hidden.dtype == torch.float64:
        raise ValueError("hidden is torch.float64; 'triton' takes bfloat16 and float32, so use 'chunked'")
    if hidden.device.type != "cuda" and not triton.knobs.runtime.interpret:
        raise ValueError(f"hidden is on {hidden.device}; 'triton' needs a GPU, so use 'chunked'")


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
    anchored = 0 if reference is None else len(reference.hidden)
    row_pass = RowPass(rows, logit_map, weight.dtype, slopes, anchored)
    shape, device = (min(chunk_rows, len(hidden)), weight.shape[0]), weight.device
    logits = row_buffer(*shape, torch.float32, device)
    anchors = logits if reference is None else row_buffer(*shape, torch.float32, device)
    d_logits = None if gradients is None else row_buffer(*shape, weight.dtype, device)
    for first in range(0, len(hidden), chunk_rows):
        count = min(chunk_rows, len(hidden) - first)
        _multiply(hidden[first : first + count], weight, logits[:count])
        if reference is not None and first < anchored:
            states = reference.hidden[first : first + count]
            _multiply(states, reference.weight, anchors[: len(states)])
        d_chunk = None if d_logits is None else d_logits[:count]
        needed = row_pass.run(first, logits[:count], anchors, d_chunk)
        if gradients is not None and d_chunk is not None:
            gradients.add(first, first + count, d_chunk, needed)
    return row_pass.said


def _multiply(hidden: Tensor, weight: Tensor, products: Tensor) -> None:
    """hidden (C, H) times the head (V, H) into float32 products (C, V), none of them rounded to bfloat16 before."""
    if hidden.dtype == products.dtype:
        torch.mm(hidden, weight.t(), out=products)
    elif hidden.device.type == "cuda":
        torch.mm(hidden, weight.t(), out_dtype=products.dtype, out=products)
    else:
        torch.mm(hidden.float(), weight.float().t(), out=products)
