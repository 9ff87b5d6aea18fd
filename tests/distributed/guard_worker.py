"""What every rank does for test_guard.py: ranks that differ, break and lag; rank 0 writes what all found as JSON."""

import json
import sys
from pathlib import Path

import torch
from torch import nn

from destruct.config.settings import load
from destruct.engine import topology as ranks
from destruct.engine.single import SingleFrozen
from destruct.engine.topology import Topology
from destruct.errors import DestructError, Drifted
from destruct.exits import Exit, leave
from destruct.guard import broken, checksum, refuse_drift, refuse_other_settings, straggler

ROOT = Path(__file__).parents[2]


def drift(odd: list[int], topology: Topology) -> str | None:
    """Which ranks are named where some have another vector than the others."""
    mine = [0.25, 0.75] if topology.rank in odd else [0.5, 0.5]
    try:
        refuse_drift({"config": "one", "vector of weights": mine, "more": topology.rank in odd}, topology)
    except Drifted as error:
        return str(error).partition("\n")[0]
    return None


def flipped(topology: Topology) -> str | None:
    """One bit of one parameter on rank 2."""
    p = torch.linspace(-1, 1, 40, dtype=torch.bfloat16)
    if topology.rank == 2:
        p.view(torch.int16)[17] ^= 1
    try:
        refuse_drift({"policy": checksum([p])}, topology)
    except Drifted as error:
        return str(error).partition(":")[0]
    return None


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


def main() -> None:
    topology = ranks.start()
    told = {
        "drift": {str(odd): drift(odd, topology) for odd in ([], [0], [1], [2], [0, 1])},
        "flipped": flipped(topology),
        "settings": other_settings(topology),
        "broken": breaks(topology),
        "slow": straggler([4.0, 4.4, 9.0][topology.rank], topology),
        "alike": straggler([4.0, 4.4, 5.0][topology.rank], topology),
        "little": straggler([0.1, 0.1, 0.9][topology.rank], topology),
    }
    everyone = topology.from_all(told)
    if topology.is_first:
        Path(sys.argv[1]).write_text(json.dumps(everyone), encoding="utf-8")
    ranks.stop()


if __name__ == "__main__":
    main()
    leave(Exit.DONE)
