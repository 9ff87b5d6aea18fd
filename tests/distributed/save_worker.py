"""What every rank does for test_save.py: saves while one rank's disk is full; rank 0 writes what all ranks saw."""

import itertools
import json
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from destruct.checkpoint import contents
from destruct.checkpoint.state import TrainState
from destruct.checkpoint.store import CheckpointStore
from destruct.engine import topology as ranks
from destruct.engine.single import SingleFrozen
from destruct.engine.topology import Topology
from destruct.exits import Exit, leave
from tests.distributed.engine_setup import close, sharded


@contextmanager
def full_disk(here: bool) -> Iterator[None]:
    """The kernel refuses this process every write beyond 2 KiB of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if here:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def case(folder: Path, way: str, bad_rank: int, topology: Topology) -> list[int]:
    """Per save (clean, full disk, clean again): on how many ranks a checkpoint was published."""
    policy, value = (sharded(nn.Linear(64, 64), way, "float32", 1, topology) for _ in range(2))
    store = CheckpointStore(folder / f"{way} rank{bad_rank}", topology, keep=3)
    networks = contents.Networks(policy, value, SingleFrozen(nn.Linear(64, 64)), None)
    published = []
    for update, full in ((1, False), (2, True), (3, False)):
        with full_disk(full and topology.rank == bad_rank):
            contents.save(store, networks, TrainState(kl_coef=0.1, update=update), "tokenizer", {})
            path = store.settle()
        published.append(int(topology.sum(torch.tensor([int(path is not None)])).item()))
    close(policy, value)
    return published


def main() -> None:
    topology = ranks.start(timeout_s=60)
    folder = Path(sys.argv[1])
    ways = itertools.product(("zero1", "zero3", "fsdp"), range(2))
    results = {f"{way} rank{rank}": case(folder, way, rank, topology) for way, rank in ways}
    if topology.is_first:
        (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    ranks.stop()


if __name__ == "__main__":
    main()
    leave(Exit.DONE)
