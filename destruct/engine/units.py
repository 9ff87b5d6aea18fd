"""The parts of a network that are gathered by themselves."""

from torch import nn
from transformers import GradientCheckpointingLayer


def layers_of(network: nn.Module) -> list[nn.Module]:
    """Its decoder layers: what transformers does not split, or can checkpoint."""
    names = {name for part in network.modules() for name in getattr(part, "_no_split_modules", None) or ()}
    layers: list[nn.Module] = []
    within: set[int] = set()
    for part in network.modules():  # parents first
        if id(part) not in within and (type(part).__name__ in names or isinstance(part, GradientCheckpointingLayer)):
            layers.append(part)
            within.update(id(inner) for inner in part.modules())
    return layers
