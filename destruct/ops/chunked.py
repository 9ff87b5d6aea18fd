"""The fused ops in plain torch, a chunk of rows at a time: no tensor of N x V elements ever exists.

Gradients are computed in the forward, where the logits of a chunk are at hand: three products per chunk (logits, hidden
gradient, weight gradient) instead of the four of a recomputation, and nothing of size N x V waits for the backward.

Beside its inputs and outputs a call holds `rows_per_chunk` rows of V logits in two or three buffers; with the weight's
gradient also (V, H) in float32, and for bfloat16 weights (V, H) in bfloat16.
Legend: N rows, C rows of a chunk, H hidden width, V vocabulary.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from destruct.ops.reference import combine, response_terms
from destruct.ops.rows import LossCoefficients, LossOutput, LossRows, ScoreOutput, ScoreRows, check_inputs, row_dtype
from destruct.ppo.kl import LOG_RATIO_CLAMP, clamp_log_ratio

CHUNK_BYTES = 256 * 2**20
MAX_CHUNK_ROWS = 256
ROW_MULTIPLE = 16


def rows_per_chunk(vocab: int, dtype: torch.dtype) -> int:
    """Rows of a chunk, from 16 to 256 in steps of 16, whose buffers fit into 256 MiB (16 rows may take more).

    It depends on the model alone, never on the free memory nor on N: the last bits of the weight gradient depend on it,
    and a resumed run must repeat them.

    Args:
        vocab: V, at least 1.
        dtype: of hidden states and weight.
    """
    row = row_dtype(dtype)
    bytes_per_logit = 2 * row.itemsize + (0 if dtype == row else dtype.itemsize)
    fitting = CHUNK_BYTES // (vocab * bytes_per_logit)
    return max(ROW_MULTIPLE, min(MAX_CHUNK_ROWS, fitting // ROW_MULTIPLE * ROW_MULTIPLE))


def policy_loss(
    hidden: Tensor, weight: Tensor, rows: LossRows, coefficients: LossCoefficients, *, chunk_rows: int | None = None
) -> LossOutput:
    """PPO, KL, entropy and PTX loss of N rows, as `destruct.ops.reference.policy_loss` defines it.

    bfloat16 inputs are multiplied in bfloat16 (logits rounded to it); everything per row is float32.  The gradient is
    first-order only.  Under `no_grad`, or where neither hidden nor weight asks, no gradient is computed or kept.

    Args:
        hidden: (N, H) bfloat16, float32 or float64.
        weight: (V, H) same dtype; pass the Parameter itself, so that engines see its use.
        rows: N rows.
        coefficients: of the loss.
        chunk_rows: rows of a chunk, >= 1; `rows_per_chunk` when None.

    Returns:
        LossOutput; its `logprobs` equal those of `score` on the same N rows bit for bit.

    Raises:
        ValueError: hidden, weight and rows do not fit together, or a target is outside [0, V) (on the CPU).
    """
    check_inputs(hidden, weight, rows.targets)
    chunk_rows = chunk_rows or rows_per_chunk(weight.shape[0], weight.dtype)
    # Asked here: inside a Function's forward gradients are always off, and needs_input_grad does not heed no_grad.
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        return LossOutput(*_PolicyLoss.apply(hidden, weight, rows, coefficients, chunk_rows))
    logprobs, entropy = _score(hidden, weight, rows.score_rows(), chunk_rows)
    return LossOutput(*combine(logprobs, entropy, rows, coefficients), logprobs)


def score(hidden: Tensor, weight: Tensor, rows: ScoreRows, *, chunk_rows: int | None = None) -> ScoreOutput:
    """Logprob of each target and entropy of each row's distribution, without gradient.

    Args:
        hidden: (N, H) bfloat16, float32 or float64.
        weight: (V, H) same dtype.
        rows: N rows.
        chunk_rows: rows of a chunk, >= 1; `rows_per_chunk` when None.

    Returns:
        ScoreOutput, nats.

    Raises:
        ValueError: hidden, weight and rows do not fit together, or a target is outside [0, V) (on the CPU).
    """
    check_inputs(hidden, weight, rows.targets)
    chunk_rows = chunk_rows or rows_per_chunk(weight.shape[0], weight.dtype)
    return ScoreOutput(*_score(hidden, weight, rows, chunk_rows))


class _PolicyLoss(torch.autograd.Function):
    """The loss with its gradients made in the forward; the backward only scales them."""

    @staticmethod
    def forward(ctx, hidden, weight, rows, coefficients, chunk_rows):
        logprobs, entropy = _empty_rows(hidden)
        gradients = _Gradients(hidden, weight, *ctx.needs_input_grad[:2])
        buffers = _Buffers(min(chunk_rows, hidden.shape[0]), weight)
        for start, stop in _chunks(hidden.shape[0], chunk_rows):
            part = rows.part(start, stop)
            buffers.take(hidden[start:stop], weight, part.score_rows())
            logprobs[start:stop], entropy[start:stop] = buffers.logprobs, buffers.entropy
            gradients.add(start, stop, buffers.logit_gradient(part, coefficients), part.active)
        loss, sums, extremes = combine(logprobs, entropy, rows, coefficients)
        # Gradients alone: a kept weight would be empty, or stale, once an engine has partitioned it again.
        ctx.save_for_backward(*gradients.finished())
        ctx.mark_non_differentiable(sums, extremes, logprobs)
        return loss, sums, extremes, logprobs

    @staticmethod
    @once_differentiable
    def backward(ctx, *output_gradients):
        scale = output_gradients[0]
        # On the device and without asking whether it is 1, which would wait for the device.
        return (*(None if saved is None else saved * scale for saved in ctx.saved_tensors), None, None, None)


class _Buffers:
    """Logits of one chunk and what is worked out of them, in memory allocated once per call.

    Fresh memory for each chunk would cost ten times the row arithmetic in page faults.
    """

    def __init__(self, chunk_rows: int, weight: Tensor):
        shape, dtype = (chunk_rows, weight.shape[0]), row_dtype(weight.dtype)
        self._logits = weight.new_empty(shape, dtype=dtype)
        self._work = weight.new_empty(shape, dtype=dtype)
        self._product = self._logits if weight.dtype == dtype else weight.new_empty(shape)

    def take(self, hidden: Tensor, weight: Tensor, rows: ScoreRows) -> None:
        """Multiply, then logprobs and entropy (C,): the one row arithmetic of scoring and of training."""
        count, dtype = hidden.shape[0], self._logits.dtype
        self.shifted, self.work = self._logits[:count], self._work[:count]
        self.product = self._product[:count]
        torch.mm(hidden, weight.t(), out=self.product)
        # Shift, then divide, then take the logarithm of the sum: a common offset of 1e4 then costs no digit.
        largest = self.product.amax(1, keepdim=True).to(dtype)
        torch.sub(self.product, largest, out=self.shifted).div_(rows.temperature.to(dtype)[:, None])
        torch.exp(self.shifted, out=self.work)
        total = self.work.sum(1)
        self.log_total = total.log()
        self.logprobs = self.shifted.gather(1, rows.targets[:, None]).squeeze(1) - self.log_total
        self.entropy = self.log_total - self.work.mul_(self.shifted).sum(1) / total

    def logit_gradient(self, rows: LossRows, coefficients: LossCoefficients) -> Tensor:
        """(C, V) in the weight's dtype, gradient with respect to hidden weight^T; overwrites the logits.

        dz_j = u (1[j = y] - p_j) - e p_j (log p_j + E),     u = dL/dlogp,  e = dL/dE,  divided by the temperature
        """
        dtype = self.work.dtype
        scale = rows.temperature.to(dtype).reciprocal()
        u = _logprob_derivative(self.logprobs, rows, coefficients) * scale
        log_p = self.shifted.sub_(self.log_total[:, None])
        gradient = torch.exp(log_p, out=self.work)
        if coefficients.entropy_coef == 0:
            gradient.mul_(-u[:, None])
        else:
            e = -coefficients.entropy_coef * rows.policy_weight.to(dtype) * scale
            gradient.mul_(log_p.add_(self.entropy[:, None]).mul_(e[:, None]).add_(u[:, None]).neg_())
        targets = rows.targets[:, None]
        # gather and scatter, one element a row: scatter_add_ has no deterministic promise on every device.
        gradient.scatter_(1, targets, gradient.gather(1, targets) + u[:, None])
        gradient.masked_fill_(~rows.active[:, None], 0.0)
        return gradient if self.product.dtype == dtype else self.product.copy_(gradient)


class _Gradients:
    """Gradients of hidden and weight, each only where asked for."""

    def __init__(self, hidden: Tensor, weight: Tensor, want_hidden: bool, want_weight: bool):
        self._hidden, self._weight = hidden, weight
        self._d_hidden = torch.empty_like(hidden) if want_hidden else None
        self._d_weight = self._partial = None
        if want_weight:
            # float32: a bfloat16 running sum over many chunks would drop all but the first digits.
            self._d_weight = torch.zeros(weight.shape, dtype=row_dtype(weight.dtype), device=weight.device)
            self._partial = None if weight.dtype == self._d_weight.dtype else weight.new_empty(weight.shape)

    def add(self, start: int, stop: int, d_logits: Tensor, active: Tensor) -> None:
        """Take the chunk of rows start to stop - 1, with its logit gradient (C, V)."""
        if self._d_hidden is not None:
            torch.mm(d_logits, self._weight, out=self._d_hidden[start:stop])
        if self._d_weight is None:
            return
        # d_logits is 0 on inactive rows, but 0 * NaN is NaN.
        used = torch.where(active[:, None], self._hidden[start:stop], 0.0)
        if self._partial is None:
            self._d_weight.addmm_(d_logits.t(), used)
        else:
            self._d_weight.add_(torch.mm(d_logits.t(), used, out=self._partial))

    def finished(self) -> tuple[Tensor | None, Tensor | None]:
        """(N, H) and (V, H) in the dtype of the inputs; None where not asked for."""
        d_weight = None if self._d_weight is None else self._d_weight.to(self._weight.dtype)
        return self._d_hidden, d_weight


@torch.no_grad()
def _score(hidden: Tensor, weight: Tensor, rows: ScoreRows, chunk_rows: int) -> tuple[Tensor, Tensor]:
    logprobs, entropy = _empty_rows(hidden)
    buffers = _Buffers(min(chunk_rows, hidden.shape[0]), weight)
    for start, stop in _chunks(hidden.shape[0], chunk_rows):
        buffers.take(hidden[start:stop], weight, rows.part(start, stop))
        logprobs[start:stop], entropy[start:stop] = buffers.logprobs, buffers.entropy
    return logprobs, entropy


def _logprob_derivative(logprobs: Tensor, rows: LossRows, coefficients: LossCoefficients) -> Tensor:
    """(C,) u = dL/dlogp of each row, with the subgradients that autograd takes at the clip's corners."""
    dtype = logprobs.dtype
    response = response_terms(logprobs, rows)
    ratio = clamp_log_ratio(response.log_ratio).exp()
    above = (response.advantages > 0) & (ratio > 1 + coefficients.clip_high)
    below = (response.advantages < 0) & (ratio < 1 - coefficients.clip_low)
    held = above | below | (response.log_ratio.abs() > LOG_RATIO_CLAMP)
    if coefficients.dual_clip is not None:
        held = held | ((response.advantages < 0) & (ratio > coefficients.dual_clip))
    u = torch.where(held, 0.0, -response.advantages * ratio)
    if coefficients.kl_estimator != "none":
        r = clamp_log_ratio(response.reference_log_ratio)
        slope = -r if coefficients.kl_estimator == "k2" else -torch.expm1(r)
        u = u + coefficients.kl_coef * torch.where(response.reference_log_ratio.abs() > LOG_RATIO_CLAMP, 0.0, slope)
    return rows.policy_weight.to(dtype) * u - rows.ptx_weight.to(dtype)


def _empty_rows(hidden: Tensor) -> tuple[Tensor, Tensor]:
    logprobs = hidden.new_empty(hidden.shape[0], dtype=row_dtype(hidden.dtype))
    return logprobs, torch.empty_like(logprobs)


def _chunks(rows: int, chunk_rows: int) -> list[tuple[int, int]]:
    return [(start, min(start + chunk_rows, rows)) for start in range(0, rows, chunk_rows)]
