"""What each of two ranks does for cost.py: saves a checkpoint by ZeRO-3, then verifies and loads it again and again.

From the page cache, and from the disk: there verifying reads the files, and loading finds them in the cache.
"""

import json
import os
import sys
import time
from pathlib import Path

import torch
from torch import nn

from destruct.checkpoint import contents
from destruct.checkpoint.identity import RANKS
from destruct.checkpoint.state import TrainState
from destruct.checkpoint.store import CheckpointStore
from destruct.engine import topology as ranks
from destruct.engine.single import SingleFrozen
from destruct.exits import Exit, leave
from tests.distributed.engine_setup import sharded

WIDTH, LAYERS, TIMES = 2048, 8, 7


def network() -> nn.Module:
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))


def leave_the_page_cache(folder: Path) -> None:
    """Let the next reader find nothing of these files in memory; they are synced."""
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def main() -> None:
    topology = ranks.start()
    policy, value = (sharded(network(), "zero3", "float32", 1, topology) for _ in range(2))
    for engine in (policy, value):  # or there are no moments
        engine.backward(engine(torch.randn(2, WIDTH)).square().mean())
        engine.step(1e-3)
    networks = contents.Networks(policy, value, SingleFrozen(network()), None)
    store = CheckpointStore(Path(sys.argv[1]) / "checkpoints", topology, keep=1)
    contents.save(store, networks, TrainState(kl_coef=0.1, update=1), "tokenizer", {RANKS: topology.world_size})
    store.settle()

    def load() -> None:
        contents.load(store.path(1), networks, store)

    def both() -> None:
        store.latest()
        load()

    turns = (
        ("verify", store.latest, False),
        ("load", load, False),
        ("load from disk", load, True),
        ("verify and load from disk", both, True),
    )
    seconds: dict[str, list[float]] = {name: [] for name, _, _ in turns}
    for _ in range(TIMES):
        for name, act, from_disk in turns:
            if from_disk and topology.is_first:
                leave_the_page_cache(store.path(1))
            topology.sum(torch.zeros(1))  # all begin together
            begun = time.perf_counter()
            act()
            topology.sum(torch.zeros(1))
            seconds[name].append(time.perf_counter() - begun)
    if topology.is_first:
        size = sum(path.stat().st_size for path in store.path(1).rglob("*") if path.is_file())
        Path(sys.argv[1], "seconds.json").write_text(json.dumps(seconds | {"bytes": size}))
    ranks.stop()


if __name__ == "__main__":
    main()
    leave(Exit.DONE)
