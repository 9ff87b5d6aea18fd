"""Plain-torch ways beside the fused loss: the bare products, full logits, and torch's own fused cross-entropy.

Legend: N rows, H hidden width, V vocabulary.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.fused_loss_case import COEFFICIENTS, Case
from destruct.ops.rows import row_dtype

GEMM_ROWS = (1024, 2048, 4096)
"""Rows of a product that are tried, beside all of them."""

TRIAL_ROWS = 2048
"""Rows on which the settings of a contender are tried."""

WIDE_BYTES = 2 * 2**30
"""Up to here float32 copies of the (N, V) logits are tried too; all contenders' memory, theirs twice, must fit."""


def fused(case: Case, policy_loss: Callable[..., Any], chunk_rows: int | None) -> Callable[[], Tensor]:
    """A step of the fused loss; it returns the logprobs and leaves the gradients in the leaves."""

    def step() -> Tensor:
        case.hidden.grad = case.weight.grad = None
        out = policy_loss(case.hidden, case.weight, case.rows, COEFFICIENTS, chunk_rows=chunk_rows)
        out.loss.backward()
        return out.logprobs

    return step


def three_gemms(case: Case) -> tuple[Callable[[], None], str]:
    """A step of the three products that no way of computing the loss can do without, and nothing else; its rows.

    Outputs are allocated beforehand.  The rows are taken at once or a chunk at a time, whichever is faster here; then
    each weight gradient is made over the one before, and adding them up is not counted.  On CUDA the logits are
    float32, as the fused loss makes them there.
    """
    count, bytes_per_row = len(case.hidden), len(case.weight) * (4 + case.hidden.element_size())
    choices = {min(count, rows) for rows in (*GEMM_ROWS, count) if min(count, rows) * bytes_per_row <= WIDE_BYTES}
    device = case.hidden.device.type
    best = min(sorted(choices), key=lambda rows: _best_of_three(_products(case, rows), device))
    return _products(case, best), f"{best} rows at a time"


def _products(case: Case, rows: int) -> Callable[[], None]:
    hidden, weight = case.hidden.detach(), case.weight.detach()
    on_cuda = hidden.is_cuda
    logits = hidden.new_empty(rows, len(weight), dtype=torch.float32 if on_cuda else None)
    slopes = torch.randn_like(logits, dtype=hidden.dtype) if on_cuda else logits
    d_hidden, d_weight = torch.empty_like(hidden), torch.empty_like(weight)
    how = {"out_dtype": torch.float32} if on_cuda and hidden.dtype != torch.float32 else {}

    def step() -> None:
        for start in range(0, len(hidden), rows):
            chunk, d_chunk = hidden[start : start + rows], d_hidden[start : start + rows]
            torch.mm(chunk, weight.t(), out=logits[: len(chunk)], **how)
            torch.mm(slopes[: len(chunk)], weight, out=d_chunk)
            torch.mm(slopes[: len(chunk)].t(), chunk, out=d_weight)

    return step


class FullLogits:
    """The same loss and gradients with whole (N, V) tensors, without autograd: the fastest plain-torch loop found.

    Every (N, V) tensor is allocated once.  The softmax's own backward takes g_j = dL/dp_j to p_j (g_j - sum_i p_i g_i);
    constants in g drop out of it, so that the entropy bonus's share is g = c z, c being its coefficient by the weight
    of a row, and the logprob's is u / p at the target.  The factor c waits for the products, which scale for nothing.

    Also tried, with the time of the row arithmetic (all but the products) on two cores at N = H = 1024, V = 32000 in
    bf16; best of 40, while the products took 490 ms:

    | row arithmetic                                            | ms |
    |-----------------------------------------------------------|----|
    | this one, on float32 copies of the logits                 | 37 |
    | this one, on bf16 logits                                  | 39 |
    | float32, a pass more for c                                | 39 |
    | float32 softmax, gradient by elementwise products         | 40 |
    | bf16, a pass more for c                                   | 41 |
    | float32 log_softmax and exp, elementwise products         | 58 |
    | bf16 softmax and elementwise products, entropy by bmm     | 92 |

    Args:
        case: N rows of equal weight.
        row_dtype: of the softmax and all after it, the case's own or float32.
    """

    def __init__(self, case: Case, row_dtype: torch.dtype):
        self._case, self._scale = case, COEFFICIENTS.entropy_coef * float(case.rows.policy_weight[0])
        self._hidden, self._weight = case.hidden.detach(), case.weight.detach()
        self._products = self._hidden.new_empty(len(self._hidden), len(self._weight))
        self._p = torch.empty_like(self._products, dtype=row_dtype)
        self._z = self._products if row_dtype == self._products.dtype else torch.empty_like(self._p)
        self.d_hidden, self.d_weight = torch.empty_like(self._hidden), torch.empty_like(self._weight)

    @torch.no_grad()
    def step(self) -> Tensor:
        """Fill `d_hidden` (N, H) and `d_weight` (V, H), and return the loss ()."""
        rows, products, dtype = self._case.rows, self._products, row_dtype(self._hidden.dtype)
        targets, scale = rows.targets[:, None], self._scale
        torch.mm(self._hidden, self._weight.t(), out=products)
        z = products if self._z is products else self._z.copy_(products)
        p = torch.softmax(z, 1, out=self._p)
        of_target, p_target = z.gather(1, targets).to(dtype), p.gather(1, targets).to(dtype)
        logprobs = p_target.log().squeeze(1)
        entropy = of_target.squeeze(1) - logprobs - torch.linalg.vecdot(p, z)
        loss, u = self._rows(logprobs, entropy)
        z.scatter_(1, targets, (of_target + u[:, None] / (scale * p_target)).to(z.dtype))
        torch.ops.aten._softmax_backward_data.out(z, p, 1, z.dtype, grad_input=z)
        slopes = products if z is products else products.copy_(z)
        torch.addmm(self.d_hidden, slopes, self._weight, beta=0, alpha=scale, out=self.d_hidden)
        torch.addmm(self.d_weight, slopes.t(), self._hidden, beta=0, alpha=scale, out=self.d_weight)
        return loss

    def _rows(self, logprobs: Tensor, entropy: Tensor) -> tuple[Tensor, Tensor]:
        """Loss () and its slope (N,) in the logprobs (N,), of the clipped objective with the k2 penalty."""
        rows, c = self._case.rows, COEFFICIENTS
        advantages, weight = rows.advantages, rows.policy_weight
        ratio, drift = (logprobs - rows.old_logprobs).exp_(), logprobs - rows.reference_logprobs
        gain, bounded = advantages * ratio, advantages * ratio.clamp(1 - c.clip_low, 1 + c.clip_high)
        terms = c.kl_coef / 2 * drift.square() - torch.minimum(gain, bounded) - c.entropy_coef * entropy
        u = weight * (c.kl_coef * drift - torch.where(bounded < gain, 0.0, gain))
        return torch.dot(weight.to(terms.dtype), terms), u


def full_logits(case: Case) -> tuple[Callable[[], Tensor], str]:
    """A step of `FullLogits` in the row dtype that is faster here, and which that is."""
    dtypes = [case.hidden.dtype]
    if len(case.hidden) * len(case.weight) * 4 <= WIDE_BYTES and torch.float32 not in dtypes:
        dtypes.append(torch.float32)
    trial, device = case.first(min(len(case.hidden), TRIAL_ROWS)), case.hidden.device.type
    best = min(dtypes, key=lambda dtype: _best_of_three(FullLogits(trial, dtype).step, device))
    return FullLogits(case, best).step, f"rows in {best}".replace("torch.", "")


def linear_cross_entropy(case: Case) -> tuple[Callable[[], None], str]:
    """A step of torch's fused cross-entropy, which has no ratio, KL or entropy, at its fastest setting; and that.

    Only the chunked settings are fused; without options it is `linear` and then `cross_entropy`, full logits, which
    `unfused_cross_entropy` times.

    Raises:
        ImportError: this torch does not have it.
    """
    if not hasattr(torch.nn.functional, "linear_cross_entropy"):
        raise ImportError(f"torch {torch.__version__} has no linear_cross_entropy")
    settings = {}
    for arguments in ({}, {"batch_chunk_size": 512}, {"batch_chunk_size": 1024}):
        named = ", ".join(f"{name}={value}" for name, value in arguments.items())
        settings[f"LinearCrossEntropyOptions({named})"] = torch.nn.LinearCrossEntropyOptions(**arguments)
    trial = case.first(min(len(case.hidden), TRIAL_ROWS))
    best = min(
        settings, key=lambda name: _best_of_three(_cross_entropy(trial, settings[name]), case.hidden.device.type)
    )
    return _cross_entropy(case, settings[best]), best


def unfused_cross_entropy(case: Case) -> tuple[Callable[[], None], str]:
    """A step of torch's cross-entropy on full logits."""
    return _cross_entropy(case, None), ""


def _cross_entropy(case: Case, options: Any) -> Callable[[], None]:
    def step() -> None:
        case.hidden.grad = case.weight.grad = None
        loss = torch.nn.functional.linear_cross_entropy(case.hidden, case.weight, case.rows.targets, options=options)
        loss.backward()

    return step


def seconds(step: Callable[[], object], device: str) -> float:
    """Wall time of one step, the device's work included."""
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _best_of_three(step: Callable[[], object], device: str) -> float:
    return min(seconds(step, device) for _ in range(3))
