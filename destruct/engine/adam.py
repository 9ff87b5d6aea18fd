"""What all backends know of torch's Adam."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor


def adam_states(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """The weights that were stepped so far, each with its moments and its count of steps."""
    for weight, state in optimizer.state.items():
        yield weight
        yield from (value for value in state.values() if isinstance(value, Tensor))


def begin_adam(optimizer: torch.optim.Optimizer, weights: Iterable[Tensor], count_on: torch.device) -> None:
    """Make the state that torch's Adam makes in its first step, so that a checkpoint has one shape at any time.

    Args:
        weights: that it will step; one that has a state keeps it.
        count_on: device of the counts of steps, which for a fused Adam is that of the weights.
    """
    for weight in weights:
        if weight not in optimizer.state:
            moments = {name: torch.zeros_like(weight.detach()) for name in ("exp_avg", "exp_avg_sq")}
            optimizer.state[weight] = {"step": torch.tensor(0.0, device=count_on), **moments}
