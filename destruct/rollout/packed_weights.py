"""On a CPU: weights in the order in which oneDNN multiplies them, for as long as one response is sampled.

A token's products have few rows, and oneDNN puts a weight in order anew for each of them, which then takes as long as
the product.  The results are the same to the last bit.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from destruct.ops.head import FusedHead


@contextmanager
def packed(network: nn.Module, rows: int) -> Iterator[None]:
    """While it lasts, the network multiplies by copies of its weights; without gradients, in bfloat16 on a CPU, else it
    does as before.

    Args:
        rows: of the inputs, about.
    """
    linear: list[Any] = [part for part in network.modules() if type(part) in (nn.Linear, FusedHead)]
    multiplying = [part for part in linear if _can_be_packed(part.weight)]
    try:
        for part in multiplying:
            part.forward = _product(part, rows)
        yield
    finally:
        for part in multiplying:
            vars(part).pop("forward", None)


def _can_be_packed(weight: Tensor) -> bool:
    """Not where an engine lends the weight from call to call."""
    here = weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and weight.numel() > 0
    return here and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _product(part: Any, rows: int) -> Callable[..., Tensor]:
    weight, bias = torch.ops.mkldnn._reorder_linear_weight(part.weight.detach(), rows), getattr(part, "bias", None)
    return lambda hidden: torch.ops.mkldnn._linear_pointwise(hidden, weight, bias, "none", [], "")
