"""transformers' `sdpa`, but dense for the short rows of a CPU, whose kernel takes four times as long to go backward.

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
        query: (n, H, T, D).
        key, value: (n, G, T, D); each serves H / G heads.
        mask: (n or 1, 1, T, T) bool, True where a row's token sees a column's; None: the columns up to its own.
        scaling: of the scores, which are rounded to the dtype of the queries.

    Returns:
        (n, T, H, D).
    """
    (n, heads, t, d), groups = query.shape, key.shape[1]
    shared = heads // groups  # the queries that share keys are further rows of one product
    queries, keys, values = (x.reshape(n * groups, -1, d) for x in (query, key, value))
    if mask is None:
        mask = torch.ones(1, 1, t, t, dtype=torch.bool, device=query.device).tril()
    bias = torch.zeros(mask.shape, dtype=query.dtype, device=query.device).masked_fill_(~mask, NOT_SEEN)
    if len(mask) == 1:
        bias = bias.view(1, t, t).repeat(1, shared, 1)
    else:
        bias = bias.expand(n, groups * shared, t, t).reshape(n * groups, shared * t, t)
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
    t = query.shape[2]
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    understood = (
        causal if attention_mask is None else attention_mask.dtype == torch.bool and attention_mask.shape[1] == 1
    )
    special = any(others.get(name) is not None for name in ("position_bias", "cache", "softcap"))
    short = query.device.type == "cpu" and 1 < t == key.shape[2] <= LONGEST and value.shape[-1] == query.shape[-1]
    if short and understood and not special and not dropout:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return dense_attention(query, key, value, attention_mask, scale), None
    given = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal}
    return sdpa_attention_forward(module, query, key, value, attention_mask, **given, **others)


AttentionInterface.register(SDPA, sdpa)
AttentionMaskInterface.register(SDPA, sdpa_mask)
