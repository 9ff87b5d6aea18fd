"""Autocast kept out of the fused ops, whose dtypes are those of their arguments."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def own_precision(op: Callable[P, R]) -> Callable[P, R]:
    """`op`, a function of (hidden, ...), without the autocast of the device of its first argument.

    Autocast would round the products of float32 to bfloat16, and some of the row arithmetic with them.
    """

    @wraps(op)
    def alone(*args: P.args, **kwargs: P.kwargs) -> R:
        hidden = args[0]
        assert isinstance(hidden, torch.Tensor)
        device = hidden.device.type
        if not torch.amp.is_autocast_available(device):
            return op(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            return op(*args, **kwargs)

    return alone
