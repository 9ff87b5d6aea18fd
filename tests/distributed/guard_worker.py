"""What every rank does for test_guard.py: ranks that differ, break and lag; rank 0 writes what all found as JSON."""

import json
import sys
import time
from pathlib import Path

import torch
from torch import nn

from destruct.checkpoint import store
from destruct.config.settings import load
from destruct.engine import topology as ranks
from destruct.engine.single import SingleFrozen
from destruct.engine.topology import Topology
from destruct.errors import DestructError
from destruct.exits import Exit, leave
from destruct.guard import broken, checksum, drift, refuse_other_settings, straggler
from destruct.heartbeat import HEART, Work

ROOT = Path(__file__).parents[2]


def drifted(odd: list[int], topology: Topology) -> str | None:
    """Which ranks are named where some have another vector than the others."""
    mine = [0.25, 0.75] if topology.rank in odd else [0.5, 0.5]
    found = drift({"config": "one", "vector of weights": mine, "more": topology.rank in odd}, topology)
    return found and str(found)


def differ_by_two(topology: Topology) -> str | None:
    """No two ranks have the same."""
    found = drift({"count": topology.rank}, topology)
    return found and str(found)


def flipped(topology: Topology) -> str | None:
    """One bit of one parameter on rank 2."""
    p = torch.linspace(-1, 1, 40, dtype=torch.bfloat16)
    if topology.rank == 2:
        p.view(torch.int16)[17] ^= 1
    found = drift({"policy": checksum([p])}, topology)
    return found and str(found).partition(":")[0]


def other_settings(topology: Topology) -> str | None:
    changes = ["ppo.clip_range=0.1"] if topology.rank == 1 else []
    try:
        refuse_other_settings(
            load(ROOT / "configs" / "local.yaml", [*changes, "rollout.batch_size=72"], topology.world_size), topology
        )
    except DestructError as error:
        return error.problem
    return None


def breaks(topology: Topology) -> list[str]:
    policy, value = (SingleFrozen(nn.Linear(3, 2)) for _ in range(2))
    if topology.rank == 1:
        value.module.bias.data[1] = float("inf")
    if topology.rank == 2:
        policy.module.weight.data[0, 0] = float("nan")
    return broken({"policy": policy, "value": value}, topology)


def beats_while_it_is_published(folder: Path, topology: Topology) -> bool:
    """Whether this rank goes on to give signs of life while the first one hashes, for two seconds."""

    def hash_slowly(stage: Path, facts: dict) -> None:
        time.sleep(2)
        manifest_seal(stage, facts)

    manifest_seal, store.ASK_AGAIN_S = store.manifest.seal, 0.2
    store.manifest.seal = hash_slowly
    ours = store.CheckpointStore(folder / "checkpoints", topology, keep=1)
    ours.save("step-00000001", [lambda stage: None], {})
    before = HEART.count
    published = ours.settle()
    store.manifest.seal = manifest_seal
    ours.close()
    return published is not None and HEART.count - before >= 4


def main() -> None:
    topology = ranks.start()
    told = {
        "drift": {str(odd): drifted(odd, topology) for odd in ([], [0], [1], [2], [0, 1])},
        "flipped": flipped(topology),
        "settings": other_settings(topology),
        "broken": breaks(topology),
        "beats": beats_while_it_is_published(Path(sys.argv[1]).parent, topology),
        "slow": straggler(Work([4.0, 4.4, 9.0][topology.rank], 100, 800), topology),
        "alike": straggler(Work([4.0, 4.4, 5.0][topology.rank], 100, 800), topology),
        "little": straggler(Work([0.1, 0.1, 0.9][topology.rank], 100, 800), topology),
        "longer": straggler([Work(4.0, 100, 800), Work(4.0, 100, 800), Work(9.0, 220, 900)][topology.rank], topology),
        "fuller": straggler([Work(4.0, 100, 400), Work(4.0, 100, 400), Work(9.0, 110, 900)][topology.rank], topology),
        "two differ": differ_by_two(topology),
    }
    everyone = topology.from_all(told)
    if topology.is_first:
        Path(sys.argv[1]).write_text(json.dumps(everyone), encoding="utf-8")
    ranks.stop()


if __name__ == "__main__":
    main()
    leave(Exit.DONE)
