"""`rollout.gather: layers`: a network without weights of its own, which has each module's gathered for its forward."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from destruct.engine.base import TrainEngine


@torch.no_grad()
def borrow(network: nn.Module, engine: TrainEngine, device: torch.device) -> None:
    """Let every module of a network take its parameters from the engine when it is called, and give them back after.

    All ranks must then call the network equally often.

    Args:
        network: of the names of the engine's own, on the meta device but for its buffers.
    """
    names = {id(p): name for name, p in network.named_parameters()}
    lent: dict[str, nn.Parameter] = {}
    for part in network.modules():
        own = {}
        for leaf, p in part._parameters.items():
            if p is not None:
                name = names[id(p)]
                nothing = torch.empty(0, dtype=p.dtype, device=device)
                own[name] = part._parameters[leaf] = lent.setdefault(name, nn.Parameter(nothing, requires_grad=False))
        if own:
            part.register_forward_pre_hook(partial(_take, engine, own))
            part.register_forward_hook(partial(_give_back, own), always_call=True)


def _take(engine: TrainEngine, own: dict[str, nn.Parameter], module: nn.Module, inputs: Any) -> None:
    for name, p in own.items():
        p.data = engine.in_full(name)


def _give_back(own: dict[str, nn.Parameter], module: nn.Module, inputs: Any, output: Tensor) -> None:
    for p in own.values():
        p.data = p.data.new_empty(0)
