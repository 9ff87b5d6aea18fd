"""Gradients of hidden states and head from those of the logits, a chunk at a time, rows without a gradient left out.

Legend: N rows, C rows of a chunk, r rows of a block, H hidden width, V vocabulary.
"""

import torch
from torch import Tensor

from destruct.ops.rows import row_dtype

BLOCK_BYTES = 4 * 2**20
"""Of the weight gradient's part that is added up while it lies in the cache."""


class Gradients:
    """Gradients of hidden (N, H) and weight (V, H), each only where asked for.

    The gradients of a chunk's logits lie, packed, in the memory of the logits themselves.
    """

    def __init__(self, hidden: Tensor, weight: Tensor, chunk_rows: int, want_hidden: bool, want_weight: bool):
        self._hidden, self._weight = hidden, weight
        self._d_hidden = torch.zeros_like(hidden) if want_hidden else None
        # More than one chunk: float32, as a bfloat16 running sum would drop all but the first digits.
        dtype = row_dtype(weight.dtype) if len(hidden) > chunk_rows else weight.dtype
        self._d_weight = torch.empty_like(weight, dtype=dtype) if want_weight else None
        self._is_first = True  # nothing is in d_weight yet: to zero it first would cost a thirtieth of the products
        self._rows: list[Tensor] = []
        self._count = 0
        self._can_wait = hidden.device.type == "cpu"

    def put(self, logits: Tensor, d_logits: Tensor, needed: Tensor, start: int) -> None:
        """Take the logit gradients (r, V) of the chunk's rows from `start` on.

        Args:
            logits: (C, V) of the chunk; its first rows, none beyond this block's, are overwritten.
            needed: (r,) bool, False on rows whose gradient is 0, whatever d_logits holds.
        """
        if self._can_wait:
            rows = needed.nonzero().squeeze(1)
            kept = d_logits if len(rows) == len(needed) else d_logits[rows]
            self._rows.append(rows + start)
        else:
            # Their number would have to be waited for: all rows are multiplied, the others as 0.
            kept = d_logits.masked_fill_(~needed[:, None], 0.0)
            self._rows.append(needed)
        logits[self._count : self._count + len(kept)].copy_(kept)
        self._count += len(kept)

    def multiply(self, first: int, last: int, logits: Tensor) -> None:
        """Make the products of the chunk of rows first to last - 1 out of what was put into its logits."""
        d_logits, rows = logits[: self._count], torch.cat(self._rows)
        self._rows, self._count = [], 0
        if len(d_logits) > 0:
            self.add(first, last, d_logits, rows)

    def add(self, first: int, last: int, d_logits: Tensor, rows: Tensor) -> None:
        """Make the products of the chunk of rows first to last - 1 out of the gradients of its logits.

        Args:
            d_logits: (k, V) in the dtype of the weight, k >= 1.
            rows: (k,) int64 which rows of the chunk these are; or (C,) bool, False where d_logits (C, V) is 0, whatever
                the hidden state is.
        """
        hidden = self._hidden[first:last]
        if self._d_hidden is not None:
            self._add_hidden(self._d_hidden[first:last], d_logits, rows)
        if self._d_weight is not None:
            self._add_weight(self._d_weight, d_logits, self._used(hidden, rows))

    def finished(self) -> tuple[Tensor | None, Tensor | None]:
        """(N, H) and (V, H) in the dtype of the inputs; None where not asked for."""
        if self._d_weight is not None and self._is_first:
            self._d_weight.zero_()
        return self._d_hidden, None if self._d_weight is None else self._d_weight.to(self._weight.dtype)

    def _used(self, hidden: Tensor, rows: Tensor) -> Tensor:
        if rows.dtype == torch.bool:
            return torch.where(rows[:, None], hidden, 0.0)  # 0 * NaN is NaN
        return hidden if len(rows) == len(hidden) else hidden[rows]

    def _add_hidden(self, d_hidden: Tensor, d_logits: Tensor, rows: Tensor) -> None:
        if len(d_logits) == len(d_hidden):
            torch.mm(d_logits, self._weight, out=d_hidden)
        else:
            d_hidden[rows] = torch.mm(d_logits, self._weight)

    def _add_weight(self, d_weight: Tensor, d_logits: Tensor, hidden: Tensor) -> None:
        beta = 0 if self._is_first else 1
        if d_logits.dtype == d_weight.dtype:
            torch.addmm(d_weight, d_logits.t(), hidden, beta=beta, out=d_weight)
        elif d_weight.device.type == "cuda":
            torch.addmm(d_weight, d_logits.t(), hidden, out_dtype=d_weight.dtype, beta=beta, out=d_weight)
        else:
            # The product is rounded to bfloat16, a part at a time that is added up before it leaves the cache.
            rows = max(1, BLOCK_BYTES // (hidden.shape[1] * hidden.element_size()))
            part = hidden.new_empty(min(rows, len(d_weight)), hidden.shape[1])
            for start in range(0, len(d_weight), rows):
                total = d_weight[start : start + rows]
                product = torch.mm(d_logits[:, start : start + rows].t(), hidden, out=part[: len(total)])
                total.copy_(product) if self._is_first else total.add_(product)
        self._is_first = False
