"""What every rank does for test_offload.py: engines whose tensors rest in files; rank 0 writes what they hold."""

import itertools
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from destruct.build import build
from destruct.config.deepspeed import FrozenJSON, frozen_json, training_json
from destruct.config.offload import OffloadFolders
from destruct.config.settings import load
from destruct.engine import topology as ranks
from destruct.engine.deepspeed import DeepSpeedEngine, DeepSpeedFrozen
from destruct.engine.topology import Topology
from destruct.exits import Exit, leave
from destruct.models.policy import build_copy
from destruct.ppo.update import ppo_update
from destruct.rollout.score import response_logprobs
from destruct.tracking.console import Screen
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
from tests.tiny import ROOT, write_config

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
    spans = [[int(border, 16) for border in line.split()[0].split("-")] for line in mappings(folder)]
    return sum(not any(start <= t.data_ptr() < end for start, end in spans) for t in tensors if t.numel())


def mappings(folder: Path) -> list[str]:
    """The kernel's lines of this process's mapped files below a folder."""
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if f" {folder}/" in line]


def equal(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def case(dtype: str, folders: OffloadFolders, folder: Path, topology: Topology) -> dict[str, Any]:
    """Three updates in files against three in the host's memory, and the third again after a resume."""
    plain, filed = engines(dtype, OffloadFolders(), topology), engines(dtype, folders, topology)
    for number in range(UPDATES - 1):
        update(plain, number, topology)
        update(filed, number, topology)
    left = left_in_memory(filed, folders)
    for engine, role in zip(filed, ("policy", "value"), strict=True):
        engine.save(folder, role)
    update(plain, UPDATES - 1, topology)
    update(filed, UPDATES - 1, topology)
    wanted, got = copies(plain), copies(filed)
    close(*filed)
    again = engines(dtype, folders, topology)
    for engine, role in zip(again, ("policy", "value"), strict=True):
        engine.load(folder, role, topology.world_size, folder)
    held_back = len(mappings(folder))
    update(again, UPDATES - 1, topology)
    left.update(left_in_memory(again, folders))
    groups = len(held(again[0])["masters"])
    result = {
        "unlike": int(not equal(got, wanted)),
        "resumed_unlike": int(not equal(copies(again), wanted)),
        "in_memory": left.total(),
        "mapped_checkpoints": held_back,
        "names": sum(len(list(path.iterdir())) for path in (folders.weights, folders.states) if path),
    }
    close(*plain, *again)
    over_ranks = topology.sum(torch.tensor(list(result.values()))).tolist()
    return {"groups": groups, **dict(zip(result, over_ranks, strict=True))}


def left_in_memory(pair: list[DeepSpeedEngine], folders: OffloadFolders) -> Counter[str]:
    """By kind, tensors that should rest in files and do not."""
    left: Counter[str] = Counter()
    for name, tensors in itertools.chain.from_iterable(held(engine).items() for engine in pair):
        path = folders.weights if name == "weights" else folders.states
        left[name] += in_memory(tensors, path) if path else 0
    return left


def unstepped_case(folders: OffloadFolders, folder: Path, topology: Topology) -> dict[str, Any]:
    """A checkpoint from memory without any moments is resumed in files."""
    plain = engines("bfloat16", OffloadFolders(), topology)
    for engine, role in zip(plain, ("policy", "value"), strict=True):
        engine.save(folder, role)
    filed = engines("bfloat16", folders, topology)
    for engine, role in zip(filed, ("policy", "value"), strict=True):
        engine.load(folder, role, topology.world_size, folder)
    for pair in (plain, filed):
        update(pair, 0, topology)
    result = {
        "unlike": int(not equal(copies(filed), copies(plain))),
        "in_memory": left_in_memory(filed, folders).total(),
    }
    close(*plain, *filed)
    return result


def built_case(files: Path, topology: Topology) -> dict[str, int]:
    """Of a run that is built from its YAML: tensors of each engine that should rest in files and do not."""
    place = {"device": "nvme", "nvme_path": str(files)}
    names = {"zero3_nvme.json": ("offload_param", "offload_optimizer"), "frozen_cpu_offload.json": ("offload_param",)}
    config = files.parent / "tiny.yaml"

    def written() -> list[str]:
        for name, keys in names.items():
            json_ = json.loads((ROOT / "ds_configs" / name).read_text())
            json_["zero_optimization"] |= dict.fromkeys(keys, place)
            (files.parent / name).write_text(json.dumps(json_))
        write_config(files.parent)
        return [f"engine.{key}={files.parent / name}" for key, name in zip(("deepspeed", "frozen"), names, strict=True)]

    overrides = topology.first_rank_makes(written)
    run = build(load(config, overrides, topology.world_size), topology, Screen(False), time.perf_counter())
    folders = OffloadFolders(files, files)
    found = {
        role: left_in_memory([engine], folders).total()
        for role, engine in (("policy", run.policy), ("value", run.value))
    }
    found["frozen"] = in_memory([q.ds_tensor for q in run.frozen.module.parameters()], files)
    run.close()
    close(run.policy, run.value, run.frozen)
    return found


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
    results["unstepped"] = unstepped_case(kinds["bfloat16 both"], scratch / "unstepped", topology)
    results["built"] = built_case(files, topology)
    if topology.is_first:
        (scratch / "results.json").write_text(json.dumps(results), encoding="utf-8")
    ranks.stop()


if __name__ == "__main__":
    main()
    leave(Exit.DONE)
