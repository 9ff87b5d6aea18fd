"""What every rank does for test_elastic.py: saves, or loads what other ranks saved; then one step of each network."""

import sys
from pathlib import Path

import torch
from torch import nn

from destruct.engine import topology as ranks
from destruct.engine.topology import Topology
from destruct.exits import Exit, leave
from tests.distributed.engine_setup import close, sharded

WAYS = [("fsdp", "float32"), ("zero0", "float32")]
WAYS += [(f"zero{stage}", dtype) for stage in (1, 2, 3) for dtype in ("float32", "bfloat16")]


def one_step(engine, way: str, dtype: str, topology: Topology) -> float:
    """The same loss on every rank; returns the gradient's norm."""
    inputs = torch.randn(4, 13, generator=torch.Generator().manual_seed(5)).to(getattr(torch, dtype))
    engine.backward(engine(inputs).float().pow(2).mean() / topology.world_size)
    norm = engine.grad_norm()
    engine.step(1e-2)
    return norm


def case(folder: Path, way: str, dtype: str, written_by: int, topology: Topology) -> dict:
    """Whole weights after the save or load, and after one more step; the norm of that step."""
    torch.manual_seed(written_by)  # a load that changes nothing is seen
    network = nn.Sequential(nn.Linear(13, 7), nn.Linear(7, 1))  # no size that two or three ranks divide
    engine = sharded(network, way, dtype, 1, topology)
    place = folder / f"{way} {dtype}"
    if written_by == topology.world_size:
        for _ in range(3):
            one_step(engine, way, dtype, topology)
        engine.save(place, "policy")
    else:
        engine.load(place, "policy", written_by, place / f"for {topology.world_size}")
    weights = {name: whole.clone() for name, whole in engine.tensors_in_full()}
    norm = one_step(engine, way, dtype, topology)
    after = {name: whole.clone() for name, whole in engine.tensors_in_full()}
    close(engine)
    return {"weights": weights, "norm": norm, "after": after}


def unstepped(folder: Path, written_by: int, topology: Topology) -> dict:
    """As `case`, of a network of ZeRO-3 that made no step before it was saved."""
    torch.manual_seed(written_by)
    engine = sharded(nn.Linear(13, 7), "zero3", "bfloat16", 1, topology)
    if written_by == topology.world_size:
        engine.save(folder / "new", "policy")
    else:
        engine.load(folder / "new", "policy", written_by, folder / "new" / f"for {topology.world_size}")
    weights = {name: whole.clone() for name, whole in engine.tensors_in_full()}
    norm = one_step(engine, "zero3", "bfloat16", topology)
    after = {name: whole.clone() for name, whole in engine.tensors_in_full()}
    close(engine)
    return {"weights": weights, "norm": norm, "after": after}


def main() -> None:
    folder, written_by = Path(sys.argv[1]), int(sys.argv[2])
    topology = ranks.start(timeout_s=60)
    results = {f"{way} {dtype}": case(folder, way, dtype, written_by, topology) for way, dtype in WAYS}
    results["unstepped"] = unstepped(folder, written_by, topology)
    if topology.is_first:
        torch.save(results, folder / f"{topology.world_size}.pt")
    ranks.stop()


if __name__ == "__main__":
    main()
    leave(Exit.DONE)
