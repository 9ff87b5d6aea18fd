"""transformers' `sdpa`, but dense for a CPU's short rows and single tokens: its kernel goes backward in four times the
time, and takes six times as long for the one token that follows a cache.

    A = softmax(scaling Q K^T + bias) V,   as two batched products and a softmax

Of Llamas with heads of 64 in bfloat16 on two cores, forward and backward of a layer of 8 x 4 heads take 4.3 ms at 128
columns against 12.4, and 14 against 29 at 320 (docs/lab.md).  The probabilities are kept for the backward, which
beyond LONGEST columns would be too much memory.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

SDPA = "destruct_sdpa"
"""The name under which transformers knows it; as it says sdpa, models that have none are refused alike."""
LONGEST = 512
"""Columns of a row; its probabilities take LONGEST elements for each head and token."""
NOT_SEEN = -1e30
"""Added to a score, whatever its size; finite, so that a column of padding, which sees nothing, is no NaN."""


def dense_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """Causal attention, or by a mask, of every head at once.

    Args:
        query: (n, H, T, D), of the last T columns; T is C, or 1 where one token follows what a cache holds.
        key, value: (n, G, C, D); each serves H / G heads.
        mask: (n or 1, 1, T, C) bool, True where a row's token sees a column's; None: the columns up to its own.
        scaling: of the scores, which are rounded to the dtype of the queries.

    Returns:
        (n, T, H, D).
    """
    (n, heads, t, d), (groups, columns) = query.shape, key.shape[1:3]
    shared = heads // groups  # the queries that share keys are further rows of one product
    queries, values = query.reshape(n * groups, shared * t, d), value.reshape(n * groups, columns, d)
    # Of a cache the keys are a view with gaps, whose transposed is multiplied three times as slowly (docs/lab.md).
    keys = key.reshape(n * groups, columns, d).contiguous()
    if mask is None:
        mask = torch.ones(1, 1, t, columns, dtype=torch.bool, device=query.device).tril(columns - t)
    bias = torch.zeros(mask.shape, dtype=query.dtype, device=query.device).masked_fill_(~mask, NOT_SEEN)
    if len(mask) == 1:
        bias = bias.view(1, t, columns).repeat(1, shared, 1)
    else:
        bias = bias.expand(n, groups * shared, t, columns).reshape(n * groups, shared * t, columns)
    scores = torch.baddbmm(bias, queries, keys.transpose(1, 2), alpha=scaling)
    said = torch.bmm(scores.softmax(-1), values)
    return said.view(n, heads, t, d).transpose(1, 2)


def sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """An attention function of transformers: dense where that is faster, else its own `sdpa`."""
    t, columns = query.shape[2], key.shape[2]
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    understood = (
        causal if attention_mask is None else attention_mask.dtype == torch.bool and attention_mask.shape[1] == 1
    )
    special = any(others.get(name) is not None for name in ("position_bias", "cache", "softcap"))
    short = t == 1 or t == columns <= LONGEST
    plain = query.device.type == "cpu" and value.shape[-1] == query.shape[-1]
    if short and plain and understood and not special and not dropout:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return dense_attention(query, key, value, attention_mask, scale), None
    given = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal}
    return sdpa_attention_forward(module, query, key, value, attention_mask, **given, **others)


AttentionInterface.register(SDPA, sdpa)
AttentionMaskInterface.register(SDPA, sdpa_mask)
