"""What every rank does for test_export.py: a run of two updates in each dtype, and what its engine has whole."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor

from destruct.build import build
from destruct.config.settings import load
from destruct.engine import topology as ranks
from destruct.engine.topology import Topology
from destruct.exits import Exit, leave
from destruct.loop import train
from destruct.tracking.console import Screen
from tests.tiny import ROOT, write_config

DTYPES = ("float32", "bfloat16")
SHORT = ["run.num_epochs=1", "run.updates_per_epoch=2", "warmup.lm_updates=2"]


def masters(engine, backend: str) -> Iterator[tuple[str, Tensor]]:
    """The engine's own float32 weights, whole, as its library gives them; all ranks call it."""
    for name, p in engine.module.named_parameters():
        yield name, safe_get_full_fp32_param(p).cpu() if backend == "deepspeed" else p.detach().full_tensor()


def one(folder: Path, backend: str, dtype: str, topology: Topology) -> None:
    """A run named after its dtype, and beside its folder what the engine has."""
    options = [f"run.name={dtype}", f"engine.backend={backend}", f"engine.deepspeed={folder / f'{dtype}.json'}"]
    settings = load(folder / "tiny.yaml", [*options, *SHORT], topology.world_size)
    run = build(settings, topology, Screen(first_rank=False), time.perf_counter())
    state = train(run)
    weights = {name: whole.cpu().clone() for name, whole in run.policy.tensors_in_full()}
    whole = {name: tensor.clone() for name, tensor in masters(run.policy, backend)}
    if topology.is_first:
        facts = {"masters": whole, "weights": weights, "sets": run.inputs.validation}
        torch.save({**facts, "validation": state.validation["after"]}, folder / f"{dtype}.pt")
    run.close()


def main() -> None:
    """Both runs."""
    topology = ranks.start(timeout_s=120)
    folder, backend = Path(sys.argv[1]), sys.argv[2]
    if topology.is_first:
        write_config(folder)
        settings = json.loads((ROOT / "ds_configs" / "zero3.json").read_text())
        for dtype in DTYPES:
            content = settings | {"bf16": {"enabled": dtype == "bfloat16"}}
            (folder / f"{dtype}.json").write_text(json.dumps(content))
    topology.all_agree(True)  # the files are there
    for dtype in DTYPES:
        one(folder, backend, dtype, topology)
    ranks.stop()


if __name__ == "__main__":
    main()
    leave(Exit.DONE)
