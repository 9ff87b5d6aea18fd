"""What all backends know of torch's Adam."""

from collections.abc import Iterator

import torch
from torch import Tensor


def adam_states(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """The weights that were stepped so far, each with its moments and its count of steps."""
    for weight, state in optimizer.state.items():
        yield weight
        yield from (value for value in state.values() if isinstance(value, Tensor))
