"""What every rank does for test_gather.py: the same short runs with `rollout.gather` once and by layers."""

import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

from destruct.build import build
from destruct.config.settings import load
from destruct.engine import topology as ranks
from destruct.engine.topology import Topology
from destruct.exits import Exit, leave
from destruct.loop import train
from destruct.tracking.console import Screen
from tests.distributed.engine_setup import close
from tests.distributed.matrix_worker import MODES, SHORT
from tests.tiny import ROOT, write_config

BACKENDS = ("deepspeed", "fsdp")


def one(folder: Path, backend: str, mode: str, gather: str, topology: Topology) -> dict[str, Any]:
    """The updates' figures, all that was said, and the elements that the replica holds afterwards."""
    options = [f"run.name={backend}-{mode}-{gather}", f"engine.backend={backend}", f"rollout.gather={gather}", *SHORT]
    options += [f"rollout.mode={mode}", f"reward.terms={MODES[mode]}", "run.samples_per_update=4"]
    options += [f"prompts.file={ROOT / 'configs' / 'prompts.yaml'}", "prompts.response_tokens=6"]
    run = build(load(folder / "tiny.yaml", options, topology.world_size), topology, Screen(False), time.perf_counter())
    train(run)
    held = sum(p.numel() for p in run.replica.parameters())
    close(run.networks.policy, run.networks.value, *run.networks.copies.values())
    if run.sinks is None:
        return {}
    run.sinks.close()
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    said = (run.folder / "samples.jsonl").read_text()
    return {"updates": [line for line in lines if "ppo/steps" in line], "said": said, "held": held}


def main() -> None:
    topology = ranks.start()
    folder = Path(sys.argv[1])
    if topology.is_first:
        write_config(folder)
    topology.all_agree(True)  # the file is there
    results = {
        f"{backend} {mode} {gather}": one(folder, backend, mode, gather, topology)
        for backend, mode, gather in itertools.product(BACKENDS, MODES, ("once", "layers"))
    }
    if topology.is_first:
        (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    ranks.stop()


if __name__ == "__main__":
    main()
    leave(Exit.DONE)
