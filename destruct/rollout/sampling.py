"""From logits to a token: the inverse CDF of a distribution at a given number."""

import torch
from torch import Tensor


def inverse_cdf(logits: Tensor, temperature: float, uniforms: Tensor) -> Tensor:
    """The token whose share of [0, 1) holds u, of the whole distribution (no top-k, no top-p).

        cdf = cumsum(softmax(logits / temperature));   token = first j with u cdf[V-1] < cdf[j]

    In float64, so that only u and the logits decide.

    Args:
        logits: (N, V) any float dtype.
        temperature: > 0.
        uniforms: (N,) float64 in [0, 1).

    Returns:
        (N,) int64.
    """
    scaled = logits.double() if temperature == 1 else logits.double() / temperature
    cdf = torch.softmax(scaled, -1).cumsum(-1)
    chosen = torch.searchsorted(cdf, (uniforms * cdf[:, -1])[:, None], right=True).squeeze(-1)
    return chosen.clamp(max=logits.shape[-1] - 1)
