"""bfloat16 on a processor without its products: they are made in float32, and rounded once.

oneDNN, which multiplies for torch, refuses bfloat16 without AVX-512.  torch's own kernels then take 7 to 30 times as
long as those of float32 with a cast there and back, and attention's gradients four times (docs/lab.md).  oneDNN's
products, too, are sums in float32 that are rounded once.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")
ATTENTIONS_GRADIENTS = "_scaled_dot_product_flash_attention_for_cpu_backward"


def is_slow() -> bool:
    """Whether torch multiplies bfloat16 with kernels of its own."""
    return torch.backends.mkldnn.is_available() and not torch.ops.mkldnn._is_mkldnn_bf16_supported()


@functools.cache
def lead_through_float32() -> torch.library.Library:
    """Replace the CPU's kernels for this process; other dtypes go to the old ones, 6 us later.

    Returns:
        What holds the replacement: it ends with this object, which is kept.
    """
    library = torch.library.Library("aten", "IMPL", "CPU")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a kernel is replaced, which is the point
        for name in (*PRODUCTS, ATTENTIONS_GRADIENTS):
            library.impl(name, _returning(name), "CPU", with_keyset=True)
        for name in PRODUCTS:
            library.impl(f"{name}.out", _writing(name), "CPU", with_keyset=True)
    return library


def _returning(name: str) -> Callable[..., Any]:
    """The operation, whose results have the dtype of its first tensor."""
    kernel = torch.library.get_kernel(f"aten::{name}", "CPU")

    def call(keys: torch.DispatchKeySet, first: Tensor, *others: Any, **settings: Any) -> Any:
        if first.dtype is not torch.bfloat16:
            return kernel.call_boxed(keys, first, *others, **settings)
        result = kernel.call_boxed(keys, *map(_wide, (first, *others)), **{k: _wide(v) for k, v in settings.items()})
        return result.bfloat16() if isinstance(result, Tensor) else tuple(part.bfloat16() for part in result)

    return call


def _writing(name: str) -> Callable[..., Tensor]:
    """The operation's form that writes into a tensor of the caller's."""
    returning = torch.library.get_kernel(f"aten::{name}", "CPU")
    writing = torch.library.get_kernel(f"aten::{name}.out", "CPU")

    def call(keys: torch.DispatchKeySet, first: Tensor, *others: Any, out: Tensor, **settings: Any) -> Tensor:
        if first.dtype is not torch.bfloat16 or out.dtype is not torch.bfloat16:
            return writing.call_boxed(keys, first, *others, out=out, **settings)
        result = returning.call_boxed(keys, *map(_wide, (first, *others)), **settings)
        return out.resize_(result.shape).copy_(result)

    return call


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype is torch.bfloat16 else value
