"""What every rank does for test_evaluate.py: a run of two updates of each backend, then `destruct evaluate` of both."""

import sys
import time
from pathlib import Path

from destruct.build import build
from destruct.config.settings import load
from destruct.engine import topology as ranks
from destruct.engine.topology import Topology
from destruct.evaluate import main as evaluate
from destruct.exits import leave
from destruct.loop import train
from destruct.tracking.console import Screen
from tests.tiny import ROOT, write_config

SHORT = ["run.num_epochs=1", "run.updates_per_epoch=2", "warmup.lm_updates=2", "run.validation_windows=19"]
PROMPTS = f"prompts.file={ROOT / 'configs/prompts.yaml'}"


def one(folder: Path, backend: str, topology: Topology) -> None:
    """A run named after its backend."""
    options = [f"run.name={backend}", f"engine.backend={backend}", *SHORT, PROMPTS]
    settings = load(folder / "tiny.yaml", options, topology.world_size)
    run = build(settings, topology, Screen(first_rank=False), time.perf_counter())
    train(run)
    run.close()


def main() -> int:
    """The runs, then what is said of them; the exit code."""
    topology = ranks.start(timeout_s=120)
    folder, backends = Path(sys.argv[1]), sys.argv[2:]
    topology.first_rank_makes(lambda: write_config(folder))
    for backend in backends:
        one(folder, backend, topology)
    # One call, as it leaves the group when it is done.
    deepspeed, fsdp = (str(folder / name) for name in backends)
    return evaluate(
        ["--checkpoint", deepspeed, "--against", fsdp, "--json", str(folder / "two.json"), "--samples", "5"]
    )


if __name__ == "__main__":
    leave(main())
