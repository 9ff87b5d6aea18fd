"""What every rank does for test_offload.py: engines whose tensors rest in files; rank 0 writes what they hold."""

import itertools
import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from destruct.config.deepspeed import FrozenJSON, frozen_json, training_json
from destruct.config.offload import OffloadFolders
from destruct.engine import topology as ranks
from destruct.engine.deepspeed import DeepSpeedEngine, DeepSpeedFrozen
from destruct.engine.topology import Topology
from destruct.exits import Exit, leave
from destruct.models.policy import build_copy
from destruct.ppo.update import ppo_update
from destruct.rollout.score import response_logprobs
from tests.distributed.engine_setup import (
    CLIP,
    COEFFICIENTS,
    LR,
    V,
    close,
    minibatches,
    networks,
    rollouts,
    settings,
    shape,
    training,
)

CPU, UPDATES = {"device": "cpu"}, 3


def engines(dtype: str, folders: OffloadFolders, topology: Topology) -> list[DeepSpeedEngine]:
    """Policy and value network, in sub-groups of some parameters each."""
    places = {name: CPU for name in ("offload_param", "offload_optimizer")}
    json_ = training_json(
        training(3, dtype, 2, {**places, "sub_group_size": 3000}), 1, topology.world_size, 7 * LR, CLIP
    )
    return [DeepSpeedEngine(module, json_, topology, folders) for module in networks(dtype, tied=True)]


def update(pair: list[DeepSpeedEngine], number: int, topology: Topology) -> None:
    order = torch.Generator().manual_seed(number)
    ppo_update(*pair, minibatches(2, topology), COEFFICIENTS, settings(), number, order, topology)


def held(engine: DeepSpeedEngine) -> dict[str, list[Tensor]]:
    """The flat tensors of an engine by kind, one for each sub-group."""
    optimizer: Any = engine.engine.optimizer
    masters = optimizer.fp32_partitioned_groups_flat
    return {
        "weights": [p.ds_tensor for p in engine.module.parameters()],
        "masters": masters,
        "gradients": [master.grad for master in masters],
        **{name: [optimizer.optimizer.state[master][name] for master in masters] for name in ("exp_avg", "exp_avg_sq")},
    }


def copies(pair: list[DeepSpeedEngine]) -> list[Tensor]:
    kinds = [held(engine) for engine in pair]
    return [t.detach().clone() for kind in kinds for name in kind if name != "gradients" for t in kind[name]]


def in_memory(tensors: list[Tensor], folder: Path) -> int:
    """How many of the tensors do not lie in a mapped file of the folder, by the kernel's own list."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    mapped = [re.match(r"(\w+)-(\w+) ....", line) for line in lines if f"{folder}/destruct-" in line]
    spans = [(int(found[1], 16), int(found[2], 16)) for found in mapped if found]
    return sum(not any(start <= t.data_ptr() < end for start, end in spans) for t in tensors if t.numel())


def equal(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def case(dtype: str, folders: OffloadFolders, folder: Path, topology: Topology) -> dict[str, Any]:
    """Three updates in files against three in the host's memory, and the third again after a resume."""
    plain, filed = engines(dtype, OffloadFolders(), topology), engines(dtype, folders, topology)
    for number in range(UPDATES - 1):
        update(plain, number, topology)
        update(filed, number, topology)
    for engine, role in zip(filed, ("policy", "value"), strict=True):
        engine.save(folder, role)
    update(plain, UPDATES - 1, topology)
    update(filed, UPDATES - 1, topology)
    wanted, got = copies(plain), copies(filed)
    close(*filed)
    again = engines(dtype, folders, topology)
    for engine, role in zip(again, ("policy", "value"), strict=True):
        engine.load(folder, role)
    update(again, UPDATES - 1, topology)
    left: dict[str, int] = {}
    for name, tensors in itertools.chain.from_iterable(held(engine).items() for engine in again):
        path = folders.weights if name == "weights" else folders.states
        left[name] = left.get(name, 0) + (in_memory(tensors, path) if path else 0)
    result = {
        "groups": len(held(again[0])["masters"]),
        "equal": equal(got, wanted),
        "resumed": equal(copies(again), wanted),
        "in_memory": left,
        "names": [path.name for path in {folders.weights, folders.states} - {None} for path in path.iterdir()],
    }
    close(*plain, *again)
    return result


def frozen_case(folder: Path, topology: Topology) -> dict[str, Any]:
    """A frozen model in files answers as the policy does."""
    policy = engines("bfloat16", OffloadFolders(), topology)[0]
    shipped = (Path(__file__).parents[2] / "ds_configs" / "frozen_cpu_offload.json").read_text()
    json_ = frozen_json(FrozenJSON.model_validate_json(shipped), training(3, "bfloat16", 1))
    frozen = DeepSpeedFrozen(build_copy(shape(True), V, torch.bfloat16, "chunked"), json_, topology, folder)
    gaps = []
    for weights in (1.0, 0.5):
        for p in policy.module.parameters():
            p.ds_tensor.mul_(weights)
        frozen.refresh(policy)
        ours, theirs = (response_logprobs(engine, rollouts(), 1.0, ptx=False) for engine in (frozen, policy))
        gaps.append((ours - theirs).abs().max().item())
    left = in_memory([p.ds_tensor for p in frozen.module.parameters()], folder)
    close(policy, frozen)
    return {"gaps": gaps, "in_memory": left}


def main() -> None:
    topology, scratch = ranks.start(), Path(sys.argv[1])
    files, others = scratch / "files", scratch / "others"
    kinds = {
        "bfloat16 both": OffloadFolders(files, files),
        "float32 both": OffloadFolders(files, others),
        "bfloat16 weights": OffloadFolders(weights=files),
        "bfloat16 states": OffloadFolders(states=others),
    }
    results: dict[str, Any] = {
        name: case(name.split()[0], folders, scratch / name, topology) for name, folders in kinds.items()
    }
    results["frozen"] = frozen_case(files, topology)
    unlike = topology.sum(torch.tensor([sum(not results[name]["equal"] for name in kinds)])).item()
    if topology.is_first:
        (scratch / "results.json").write_text(json.dumps(results | {"unlike": unlike}), encoding="utf-8")
    ranks.stop()


if __name__ == "__main__":
    main()
    leave(Exit.DONE)
