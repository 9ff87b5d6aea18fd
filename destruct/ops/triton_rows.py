"""The row kernel: what a row of logits says, and the gradient of its products, by one program per row.

It reads float32 products, twice where a gradient is wanted (three times with an exact KL, and the reference's twice),
and writes that gradient in the dtype of the weight.  Everything in between stays in registers.

One binary serves every loss and the scores of old logprobs: what differs between those is an argument, not a
compile-time constant, since another binary might add up in another order.  So equal products give equal bits.
Legend: N rows of a call, C rows of a chunk, V vocabulary, W >= V row width of the buffers.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from destruct.ops.autograd import GivenSlopes, LossSlopes, Said
from destruct.ops.rows import KL_NAMES, LogitMap, ScoreRows
from destruct.ops.triton_parts import EXACT_FORWARD, block, divergence, loss_slopes, mapped, shifted, sums

ROW_MULTIPLE = 16
"""Elements: rows of a buffer begin at multiples of 32 bytes, for loads of 16 and for the products, whatever V is."""
MAX_BLOCK, WARPS, REGISTERS = 4096, 16, 64
"""Two programs share a multiprocessor's 65 536 registers: while one waits for its row's sums, the other loads."""


def row_buffer(count: int, vocab: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(count, vocab) view of rows whose memory is padded to a multiple of 16 elements, uninitialised."""
    width = -(-vocab // ROW_MULTIPLE) * ROW_MULTIPLE
    return torch.empty(count, width, dtype=dtype, device=device)[:, :vocab]


class RowPass:
    """The rows of one call as the kernel takes them, and what it has said about them.

    Args:
        slopes: of the loss whose terms or gradient are asked for; None for scores alone.
        anchored: rows that the reference has states of.
    """

    def __init__(
        self,
        rows: ScoreRows,
        logit_map: LogitMap,
        dtype: torch.dtype,
        slopes: LossSlopes | GivenSlopes | None = None,
        anchored: int = 0,
    ):
        columns = [rows.temperature]
        lowest, highest, dual_clip, kl_coef, entropy_coef = 0.0, 0.0, 0.0, 0.0, 0.0
        if isinstance(slopes, LossSlopes):
            of, c = slopes.rows, slopes.coefficients
            columns += [of.old_logprobs, of.reference_logprobs, of.advantages, of.policy_weight, of.ptx_weight]
            lowest, highest, kl_coef, entropy_coef = 1 - c.clip_low, 1 + c.clip_high, c.kl_coef, c.entropy_coef
            dual_clip = float("inf") if c.dual_clip is None else c.dual_clip
        elif slopes is not None:
            columns += [slopes.logprob, slopes.entropy, slopes.log_sum_exp]
        self._columns = torch.stack([column.float() for column in columns])
        self._targets = rows.targets.contiguous()
        said = self._columns.new_zeros(len(Said._fields), len(rows.targets))
        self.said, self._said = Said(*said), said
        # Where no gradient is wanted, of the dtype that selects the binary.
        self._no_gradient = said.new_empty(1, 1, dtype=dtype)
        self._kl = 0 if slopes is None else KL_NAMES.index(slopes.kl)
        self._anchored, self._given = anchored, isinstance(slopes, GivenSlopes)
        # Whole numbers would be arguments of another type, and so another binary.
        self._loss = tuple(map(float, (lowest, highest, dual_clip, kl_coef, entropy_coef)))
        self._capped = logit_map.soft_cap is not None
        self._mapping = float(logit_map.scale), float(logit_map.soft_cap or 1.0)

    def run(self, first: int, logits: Tensor, anchors: Tensor | None, d_logits: Tensor | None) -> Tensor:
        """Work out the rows from `first` on; `said` holds them then.

        Args:
            logits: (C, V) float32 products, of a `row_buffer`, like the next two.
            anchors: (C, V) float32 products of the reference.
            d_logits: (C, V) in the dtype of the weight; overwritten by the gradient of the products.

        Returns:
            (C,) bool, False on rows whose gradient is 0 whatever they hold; meaningless without d_logits.
        """
        count, vocab = logits.shape
        needed = torch.empty(count, dtype=torch.bool, device=logits.device)
        row_kernel[(count,)](
            logits,
            logits if anchors is None else anchors,
            self._columns,
            self._targets,
            self._said,
            needed,
            self._no_gradient if d_logits is None else d_logits,
            first,
            len(self._targets),
            vocab,
            logits.stride(0),
            self._anchored,
            int(d_logits is not None),
            self._kl,
            self._loss,
            self._mapping,
            CAPPED=self._capped,
            GIVEN=self._given,
            BLOCK=min(MAX_BLOCK, triton.next_power_of_2(vocab)),
            num_warps=WARPS,
            maxnreg=REGISTERS,
            enable_fp_fusion=True,
        )
        return needed


@triton.jit
def _slopes(logprob, exact_kl, is_forward, column, total, kl, loss, GIVEN: tl.constexpr):
    """u, e, k as `_derive` takes them, and what makes its constant but for what u and e add to that."""
    if GIVEN:
        u, e, k, constant = tl.load(column + total), tl.load(column + 2 * total), 0.0, tl.load(column + 3 * total)
    else:
        u, e, k = loss_slopes(logprob, column, total, kl, loss)
        constant = tl.where(is_forward, k, -k * exact_kl)
    return u, e, k, constant


@triton.jit
def _derive(
    rows, target, slopes, models, is_forward, how, PAIR: tl.constexpr, CAPPED: tl.constexpr, BLOCK: tl.constexpr
):
    """Gradient of a row's products, from its slopes (u, e, k, constant) and each model's largest logit and log sum.

        dz_j = u 1[j = y] + p_j (constant - e log p_j + k (log p_j - log q_j))

    or, with the forward KL, - k q_j in place of the last term; from there through temperature, cap and scale.
    """
    u, e, k, constant = slopes
    width, inverse_temperature, scale = how[1], how[2], how[3]
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        logits, slope = block(rows[0], columns, how, CAPPED)
        log_p = shifted(logits, models[0], inverse_temperature) - models[1]
        p = tl.exp(log_p)
        d_logits = p * (constant - e * log_p)
        if PAIR:
            anchors = block(rows[1], columns, how, CAPPED)[0]
            log_q = shifted(anchors, models[2], inverse_temperature) - models[3]
            d_logits += k * tl.where(is_forward, -tl.exp(log_q), p * (log_p - log_q))
        d_logits = tl.where(columns == target, d_logits + u, d_logits) * (inverse_temperature * scale * slope)
        tl.store(rows[2] + columns, d_logits.to(rows[2].dtype.element_ty), mask=columns < width)


@triton.jit
def _clear(d_row, width, BLOCK: tl.constexpr):
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        tl.store(d_row + columns, tl.zeros((BLOCK,), d_row.dtype.element_ty), mask=columns < width)


# Nothing that differs between two calls on one model is specialised: not a row count, not an alignment, not a flag.
@triton.jit(
    do_not_specialize=["columns", "targets", "said", "needed", "first", "total", "anchored", "wants_gradient", "kl"]
)
def row_kernel(
    logits,  # (C, V) float32 products, W wide
    anchors,  # (C, V) the reference's, of its first `anchored` rows of the call
    columns,  # (6, N), or (4, N) where the slopes are given, or (1, N): as `RowPass` stacks them
    targets,  # (N,)
    said,  # (4, N) in the order of `Said`
    needed,  # (C,)
    d_logits,  # (C, V), W wide
    first,  # row of the call that is row 0 of the chunk
    total,  # N
    vocab,
    width,
    anchored,
    wants_gradient,
    kl,  # index in KL_NAMES
    loss,  # as `loss_slopes` takes it
    mapping,  # scale and cap
    CAPPED: tl.constexpr,
    GIVEN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    here = tl.program_id(0).to(tl.int64)
    index, offset = first + here, here * width
    column, target = columns + index, tl.load(targets + index)
    rows = logits + offset, anchors + offset, d_logits + offset
    inverse_temperature = 1.0 / tl.load(column)
    how = vocab, width, inverse_temperature, mapping[0], mapping[1]
    largest, sum_, weighted = sums(rows[0], how, CAPPED, BLOCK)
    log_total = tl.log(sum_)
    entropy = log_total - weighted / sum_
    product = tl.load(rows[0] + target, mask=(target >= 0) & (target < vocab), other=float("nan"))
    logprob = (mapped(product, mapping[0], mapping[1], CAPPED)[0] - largest) * inverse_temperature - log_total
    tl.store(said + index, logprob)
    tl.store(said + total + index, entropy)
    tl.store(said + 2 * total + index, largest * inverse_temperature + log_total)

    # Only response rows have a KL, whatever the reference's other states hold.
    has_anchor = tl.load(column + 4 * total, mask=index < anchored, other=0.0) != 0
    is_forward = kl == EXACT_FORWARD
    exact_kl, anchor_largest, log_anchors = 0.0, 0.0, 0.0
    if has_anchor:
        odds = divergence(rows[0], rows[1], largest, log_total, is_forward, how, CAPPED, BLOCK)
        exact_kl, anchor_largest, log_anchors = odds
        tl.store(said + 3 * total + index, exact_kl)
    if wants_gradient:
        u, e, k, constant = _slopes(logprob, exact_kl, is_forward, column, total, kl, loss, GIVEN)
        is_needed = (u != 0) | (e != 0) | (k != 0) | (constant != 0)
        tl.store(needed + here, is_needed)
        slopes = u, e, k, constant - u - e * entropy
        models = largest, log_total, anchor_largest, log_anchors
        if is_needed & has_anchor:
            _derive(rows, target, slopes, models, is_forward, how, True, CAPPED, BLOCK)
        elif is_needed:
            _derive(rows, target, slopes, models, is_forward, how, False, CAPPED, BLOCK)
        else:
            _clear(rows[2], width, BLOCK)
