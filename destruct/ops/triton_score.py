"""Scores without logits: products whose tiles are summed up where they are made.

Each program takes some rows and every so many tiles of the vocabulary, and keeps the sums of `LogitSums` of its rows;
those of the programs that share rows are merged at the end.  What it holds beside its inputs is 16 bytes a row and
program, however large the vocabulary.
Legend: N rows, H hidden width, V vocabulary.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from destruct.ops.rows import LogitMap, ScoreOutput, ScoreRows
from destruct.ops.sums import LogitSums
from destruct.ops.triton_parts import mapped, shift_by, shifted


class Tiles(NamedTuple):
    """Shape of the products of one program, and how it is run."""

    rows: int
    columns: int
    inner: int
    warps: int
    stages: int


TILES = {torch.bfloat16: Tiles(128, 256, 64, 8, 4), torch.float32: Tiles(64, 64, 32, 4, 3)}
"""By dtype: tensor cores for bfloat16; the plain multipliers, exact to float32, for float32."""

SPLITS = 32
"""Programs that share rows, at most: with N = 512 they still fill 128 of 132 multiprocessors."""
GROUP = 16
"""Blocks of rows that are worked on side by side, so that their hidden states stay in the cache."""


def score_without_logits(hidden: Tensor, weight: Tensor, rows: ScoreRows, logit_map: LogitMap) -> ScoreOutput:
    """Logprob of each target, entropy and log-sum-exp of each row, without a gradient.

    Args:
        hidden: (N, H) bfloat16 or float32.
        weight: (V, H) same dtype.
        rows: N rows.
        logit_map: what the model does to its products.

    Returns:
        ScoreOutput, float32, nats; a target outside [0, V) has logprob -inf.
    """
    tiles, vocab = TILES[hidden.dtype], weight.shape[0]
    hidden, weight = (x if x.stride(1) == 1 else x.contiguous() for x in (hidden, weight))
    if not isinstance(score_kernel, triton.JITFunction):
        # The interpreter multiplies the bits of bfloat16 as whole numbers; raised to float32 the products are the same.
        hidden, weight = hidden.float(), weight.float()
    splits = min(SPLITS, triton.cdiv(vocab, tiles.columns))
    parts = torch.empty(4, splits, len(hidden), dtype=torch.float32, device=hidden.device)
    inverse_temperature = rows.temperature.float().reciprocal()
    if len(hidden) > 0:
        score_kernel[(triton.cdiv(len(hidden), tiles.rows) * splits,)](
            hidden,
            weight,
            rows.targets.contiguous(),
            inverse_temperature,
            parts,
            len(hidden),
            vocab,
            hidden.shape[1],
            hidden.stride(0),
            weight.stride(0),
            splits,
            (float(logit_map.scale), float(logit_map.soft_cap or 1.0)),
            CAPPED=logit_map.soft_cap is not None,
            GROUP=GROUP,
            ROWS=tiles.rows,
            COLUMNS=tiles.columns,
            INNER=tiles.inner,
            num_warps=tiles.warps,
            num_stages=tiles.stages,
            enable_fp_fusion=True,
        )
    return _merged(LogitSums(*parts), inverse_temperature)


def _merged(parts: LogitSums, inverse_temperature: Tensor) -> ScoreOutput:
    """Scores from sums (parts, N) whose logits are not yet divided by the temperature."""
    # Shift, then divide: a common offset of 1e4 then costs no digit.
    offset = parts.largest.amax(0)
    largest, target = ((logits - offset) * inverse_temperature for logits in (parts.largest, parts.target))
    scores = parts._replace(largest=largest, target=target).over_parts().scores()
    return scores._replace(log_sum_exp=scores.log_sum_exp + offset * inverse_temperature)


@triton.jit
def _products(hidden, weight, rows, columns, inner, hidden_stride, weight_stride, ROWS, COLUMNS, INNER: tl.constexpr):
    """(ROWS, COLUMNS) float32 products of some rows of hidden states and of the head."""
    depth = tl.arange(0, INNER)
    left = hidden + rows.to(tl.int64)[:, None] * hidden_stride + depth[None, :]
    right = weight + columns.to(tl.int64)[None, :] * weight_stride + depth[:, None]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, inner, INNER):
        x = tl.load(left + start, mask=depth[None, :] < inner - start, other=0.0)
        w = tl.load(right + start, mask=depth[:, None] < inner - start, other=0.0)
        total = tl.dot(x, w, total, input_precision="ieee")
    return total


# Specialised, a single split would be a constant of Python's, which has no `to`.
@triton.jit(do_not_specialize=["targets", "inverse_temperature", "count", "splits"])
def score_kernel(
    hidden,
    weight,
    targets,
    inverse_temperature,
    parts,
    count,
    vocab,
    inner,
    hidden_stride,
    weight_stride,
    splits,
    mapping,
    CAPPED: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
):
    # Programs of GROUP blocks of rows and all splits, one such group after another.
    group, place = tl.program_id(0) // (GROUP * splits), tl.program_id(0) % (GROUP * splits)
    height = tl.minimum(tl.cdiv(count, ROWS) - group * GROUP, GROUP)
    rows, split = (group * GROUP + place % height) * ROWS + tl.arange(0, ROWS), place // height
    # Rows and columns beyond the last are the last once more: no memory but theirs is read, and no mask asked.
    here = tl.minimum(rows, count - 1)
    # 32 bits: to compare a tile of column numbers in 64 would take more registers than there are.
    target, inverse = tl.load(targets + here).to(tl.int32)[:, None], tl.load(inverse_temperature + here)
    largest = tl.full((ROWS,), -float("inf"), tl.float32)
    total, weighted, at_target = tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS,), tl.float32), largest
    for tile in range(split, tl.cdiv(vocab, COLUMNS), splits):
        columns = tile * COLUMNS + tl.arange(0, COLUMNS)
        last = tl.minimum(columns, vocab - 1)
        products = _products(hidden, weight, here, last, inner, hidden_stride, weight_stride, ROWS, COLUMNS, INNER)
        logits = mapped(products, mapping[0], mapping[1], CAPPED)[0]
        logits = tl.where(columns[None, :] < vocab, logits, -float("inf"))
        at_target = tl.maximum(at_target, tl.max(tl.where(columns[None, :] == target, logits, -float("inf")), 1))
        new = tl.maximum(largest, tl.max(logits, 1))
        step = shift_by(largest, new, inverse)
        z = shifted(logits, new[:, None], inverse[:, None])
        powers = tl.exp(z)
        weighted = (weighted + step * total) * tl.exp(step) + tl.sum(powers * z, 1)
        total = total * tl.exp(step) + tl.sum(powers, 1)
        largest = new
    part, inside = parts + split.to(tl.int64) * count + rows, rows < count
    column = splits.to(tl.int64) * count
    tl.store(part, largest, mask=inside)
    tl.store(part + column, total, mask=inside)
    tl.store(part + 2 * column, weighted, mask=inside)
    tl.store(part + 3 * column, at_target, mask=inside)
