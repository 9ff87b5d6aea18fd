"""Parameters of ZeRO-3: in full, and a rank's part of one."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from destruct.engine.topology import Topology


def gathered(module: nn.Module, topology: Topology) -> Iterator[tuple[str, Tensor]]:
    """Whole parameters one at a time; the engine's own state is not touched (no GatheredParameters)."""
    p: Any
    for name, p in module.named_parameters():
        yield name, whole_of(p, topology)


def whole_of(p: Any, topology: Topology) -> Tensor:
    """A parameter in full, of ZeRO-3 or not."""
    if not hasattr(p, "ds_tensor"):
        return p.detach()
    return topology.gather_flat(p.ds_tensor.data.to(topology.device))[: p.ds_numel].view(p.ds_shape)


def shard_bounds(p: Any, topology: Topology) -> tuple[int, int]:
    """This rank's part of a ZeRO-3 parameter as [start, end) of its flat elements, padding left out."""
    size = p.ds_tensor.numel()
    start = min(topology.rank * size, p.ds_numel)
    return start, min(start + size, p.ds_numel)


def write_shard(q: Any, whole: Tensor, topology: Topology) -> None:
    """Copy this rank's part of a whole parameter into its shard."""
    start, end = shard_bounds(q, topology)
    q.ds_tensor.view(-1)[: end - start].copy_(whole.reshape(-1)[start:end])
