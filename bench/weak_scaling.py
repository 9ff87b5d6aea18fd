"""Weak scaling: configs/local.yaml on one rank and on two with twice the rollouts, by backend; one JSON line.

    python -m bench.weak_scaling --repeats 3

The runs take turns.  Seconds are medians over the updates but each run's first, those of the update per optimizer step;
the efficiency is the time on one rank over that on two.  The share in collectives is what two ranks wait in them, for
the bytes and for each other, of the last update's seconds.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from destruct.progress import tracked

ROOT = Path(__file__).resolve().parents[1]
BACKENDS, RANKS, PHASES = ("deepspeed", "fsdp"), (1, 2), ("generate", "score", "update")
ROLLOUTS = 32  # of each rank
SHORT = {
    "run.num_epochs": 1,
    "run.updates_per_epoch": 5,
    "run.validation_windows": 4,
    "warmup.lm_updates": 10,
    "warmup.value_updates": 1,
}


def measure(folder: Path, backend: str, ranks: int) -> Iterator[tuple[str, float]]:
    """Phase and seconds of every update but the first of a run; `waits in PHASE`, and a share, of the last."""
    values = SHORT | {
        "engine.backend": backend,
        "rollout.batch_size": ROLLOUTS * ranks,
        "run.folder": folder,
        "run.name": "run",
        "run.resume": "never",
    }
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [*launcher, "-m", "bench.watched_rank", "waits", str(ROOT / "configs" / "local.yaml")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    overrides = [f"{key}={value}" for key, value in values.items()]
    done = subprocess.run([*command, *overrides], cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    for phase, figures in json.loads(done.stdout.splitlines()[-1]).items():
        yield f"waits in {phase}", figures["waited_s"] / figures["seconds"]
    for line in (folder / "run" / "metrics.jsonl").read_text().splitlines():
        figures = json.loads(line)
        if "ppo/steps" in figures and figures["step"] > 0:
            for phase in PHASES:
                yield phase, figures[f"time/{phase}"] / (figures["ppo/steps"] if phase == "update" else 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    seconds = defaultdict(list)
    runs = list(itertools.product(range(options.repeats), RANKS, BACKENDS))
    for repeat, ranks, backend in tracked(runs, "scaling", "runs"):
        print(f"repeat {repeat + 1} of {options.repeats}: {backend}, {ranks} rank(s)", file=sys.stderr)
        with tempfile.TemporaryDirectory() as folder:
            for phase, value in measure(Path(folder), backend, ranks):
                seconds[backend, phase, ranks].append(value)
    report = {}
    for backend, phase in itertools.product(BACKENDS, PHASES):
        one, two = (statistics.median(seconds[backend, phase, ranks]) for ranks in RANKS)
        waits = statistics.median(seconds[backend, f"waits in {phase}", 2])
        report[f"{backend} {phase}"] = {
            "one_s": one,
            "two_s": two,
            "efficiency": one / two,
            "share_in_collectives": waits,
        }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
