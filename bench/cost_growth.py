"""How the cost of an update grows: seconds and memory against P, R, B, V, the model's size and ranks, beside the plan.

    python -m bench.cost_growth                    # all axes, about a quarter of an hour; bench/cost_growth.json
    python -m bench.cost_growth --axes P R         # those alone; the others stay as the file has them

One axis moves at a time about a base (`BASE`); ZeRO-3 over gloo, one thread a rank, micro-batches of 4 rollouts, one
epoch.  Seconds are those of the phases generate, score, update and kl, of every update but the first, from the run's
own metrics; memory is the peak of the fullest rank above the imports, in a run of its own (see bench/plan_accuracy.py).
`python docs/generate.py` writes docs/performance.md from the file, and `--png` draws docs/performance.png.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bench.results import commit, here
from destruct.config.settings import Settings, load
from destruct.planning.duration import plan_duration
from destruct.planning.hardware import HARDWARE
from destruct.planning.job import MIB, job_of
from destruct.planning.memory import plan_memory
from destruct.progress import tracked

ROOT = Path(__file__).resolve().parents[1]
CONFIG, FILE = ROOT / "configs" / "local.yaml", ROOT / "bench" / "cost_growth.json"
PHASES = ("generate", "score", "update", "kl")
MICRO, UPDATES = 4, 4
BASE = {"P": 64, "R": 64, "B": 16, "V": 8192, "layers": 4, "H": 256, "ranks": 1}
AXES: dict[str, tuple[int, ...]] = {
    "P": (32, 64, 128, 256),
    "R": (32, 64, 128, 256),
    "B": (8, 16, 32, 64),
    "V": (2048, 4096, 8192, 16384),
    "layers": (2, 4, 8),
    "H": (128, 256, 512),
    "ranks": (1, 2, 4),
}
"""Axis -> its values; the base is one of them.  H comes with 4 H in the feed-forward part and heads of 64."""


def overrides(point: dict[str, int], folder: Path, updates: int) -> list[str]:
    """What is changed in configs/local.yaml.

    Args:
        folder: for the JSON and the run.
        updates: of the run.
    """
    json_ = json.loads((ROOT / "ds_configs" / "zero3.json").read_text(encoding="utf-8"))
    json_["gradient_accumulation_steps"] = point["B"] // (MICRO * point["ranks"])
    json_["zero_optimization"]["reduce_bucket_size"] = 2_000_000
    (folder / "training.json").write_text(json.dumps(json_), encoding="utf-8")
    heads = max(1, point["H"] // 64)
    shape = {
        "hidden_size": point["H"],
        "intermediate_size": 4 * point["H"],
        "num_hidden_layers": point["layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
    }
    values: dict[str, object] = {
        "run.folder": folder,
        "run.name": "run",
        "run.num_epochs": 1,
        "run.updates_per_epoch": updates,
        "run.checkpoint_every": 0,
        "run.validation_windows": 4,
        "engine.deepspeed": folder / "training.json",
        "data.sources": "{prose: {embedded: prose}, code: {embedded: code}}",
        "data.tokenizer.vocab_size": point["V"],
        "rollout.batch_size": point["B"],
        "rollout.prompt_tokens": point["P"],
        "rollout.response_tokens": point["R"],
        "ppo.epochs": 1,
        "ppo.minibatches": 1,
        "warmup.lm_updates": 0,
        "warmup.value_updates": 1,
        "curriculum.difficulty_sample_size": 8,
    }
    values |= {f"model.{network}.{key}": size for network in ("policy", "value") for key, size in shape.items()}
    return [f"{key}={value}" for key, value in values.items()]


def run(point: dict[str, int], folder: Path, what: str, updates: int) -> dict[str, dict[str, float]]:
    """The last update's phases, as bench/watched_rank.py tells them."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={point['ranks']}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    command = [*launcher, "-m", "bench.watched_rank", what, str(CONFIG), *overrides(point, folder, updates)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


@cache
def cost(sizes: tuple[int, ...]) -> dict[str, float]:
    """What is measured, and what the plan says, of a point in the order of the axes; the base is measured once."""
    point = dict(zip(BASE, sizes, strict=True))
    p20, p50, p80 = np.percentile(seconds(point), (20, 50, 80)).tolist()
    plan_s, plan_mib = planned(point)
    told = {"s": p50, "s_p20": p20, "s_p80": p80, "mib": peak_mib(point), "plan_s": plan_s, "plan_mib": plan_mib}
    return {name: float(f"{x:.4g}") for name, x in told.items()}


def seconds(point: dict[str, int]) -> list[float]:
    """Of every update but the first."""
    with tempfile.TemporaryDirectory() as scratch:
        run(point, Path(scratch), "waits", UPDATES)
        lines = (Path(scratch) / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    updates = [figures for figures in map(json.loads, lines) if "ppo/steps" in figures]
    return [sum(figures[f"time/{phase}"] for phase in PHASES) for figures in updates[1:]]


def peak_mib(point: dict[str, int]) -> float:
    """Of the fullest rank in the second update."""
    with tempfile.TemporaryDirectory() as scratch:
        phases = run(point, Path(scratch), "memory", 2)
    return max(phases[phase]["peak_mib"] for phase in PHASES)


def planned(point: dict[str, int]) -> tuple[float, float]:
    """Seconds on one core of the plan's CPU for each rank, and MiB of the fullest moment of an update."""
    with tempfile.TemporaryDirectory() as scratch:
        settings: Settings = load(CONFIG, overrides(point, Path(scratch), UPDATES), point["ranks"])
        job = job_of(settings, HARDWARE["cpu"], 8)
        moments = plan_memory(job).moments("host")
        moments.pop("checkpoint")
        time = sum(phase.seconds for phase in plan_duration(job) if phase.name in PHASES)
    return time, max(moments.values()) / MIB


def measure(axis: str) -> list[dict[str, Any]]:
    """One line for each value of an axis."""
    lines = []
    for value in tracked(AXES[axis], axis):
        lines.append({"at": value} | cost(tuple((BASE | {axis: value}).values())))
        print(axis, json.dumps(lines[-1]), file=sys.stderr, flush=True)
    return lines


def fit(axis: str, lines: list[dict[str, Any]], figure: str) -> tuple[float, float, float]:
    """Least squares of the figure's share: figure = constant + slope x^power, and how far the worst point is off it.

    Each point counts by its own size, so that the small ones do.
    """
    x, y = _raised(axis, [line["at"] for line in lines]), np.array([line[figure] for line in lines])
    (constant, slope), *_ = np.linalg.lstsq(np.stack([1 / y, x / y], 1), np.ones(len(y)), rcond=None)
    return float(constant), float(slope), float(np.max(np.abs((constant + slope * x) / y - 1)))


POWERS = {"H": 2, "ranks": -1}
"""Axis -> the power of it that is fitted; the others' is 1."""


def _raised(axis: str, values: Any) -> np.ndarray:
    return np.asarray(values, float) ** POWERS.get(axis, 1)


def draw(found: dict[str, Any], path: Path) -> None:
    """Seconds above, memory below; dots measured, lines fitted, crosses the plan's.

    The plan's seconds are drawn as multiples of those at the base, where they are put onto the measured ones: its CPU
    is a round figure, and what it foretells is how the time grows.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(2, len(AXES), figsize=(3 * len(AXES), 6.5), layout="constrained")
    for column, (axis, lines) in enumerate(found["axes"].items()):
        base = next(line for line in lines if line["at"] == BASE[axis])
        x = np.array([line["at"] for line in lines])
        for shown, name, plan, scale in (
            (grid[0, column], "s", "plan_s", base["s"] / base["plan_s"]),
            (grid[1, column], "mib", "plan_mib", 1.0),
        ):
            constant, slope, _ = fit(axis, lines, name)
            between = np.linspace(x[0], x[-1], 50)
            shown.plot(
                between, constant + slope * _raised(axis, between), color="tab:blue", linewidth=1, label="fitted"
            )
            shown.plot(x, [line[name] for line in lines], "o", color="tab:blue", label="measured")
            shown.plot(x, [scale * line[plan] for line in lines], "x", color="tab:orange", label="destruct plan")
            shown.set(xlabel=axis)
            shown.set_ylim(0, 1.1 * shown.get_ylim()[1])
        grid[0, column].vlines(x, [line["s_p20"] for line in lines], [line["s_p80"] for line in lines])
    grid[0, 0].set(ylabel="seconds an update")
    grid[1, 0].set(ylabel="MiB of the fullest rank")
    grid[0, 0].legend(fontsize="small")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="*", choices=AXES, default=list(AXES), help="none: measure nothing")
    parser.add_argument("--png", type=Path, help="draw the file's figures there")
    options = parser.parse_args()
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {"axes": {}}
    for axis in options.axes:
        found["axes"][axis] = measure(axis)
        found |= {"device": here(), "commit": commit()}
        found["axes"] = {name: found["axes"][name] for name in AXES if name in found["axes"]}
        FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if options.png:
        draw(found, options.png)


if __name__ == "__main__":
    main()
