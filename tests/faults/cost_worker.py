"""What each of two ranks does for cost.py: saves a checkpoint by ZeRO-3, then verifies and loads it again and again."""

import json
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

WIDTH, LAYERS, TIMES = 1024, 8, 7


def network() -> nn.Module:
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))


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
    seconds: dict[str, list[float]] = {"verify": [], "load": []}
    for _ in range(TIMES):
        for name, act in (("verify", store.latest), ("load", lambda: contents.load(store.path(1), networks, store))):
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
