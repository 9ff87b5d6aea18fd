"""One PPO iteration against TRL 1.12's, on equal work: the same weights, prompts, token counts and optimizer steps.

    python -m bench.ppo_iteration --dtype bfloat16 --vocab 8192 --hidden 256 --layers 6 --prompt 64 --response 64 \\
        --batch 32 --micro 8 --epochs 2

The sides run by turns in fresh processes, two threads in all.  The parity gate (bench/ppo_parity.py) comes first: one
rollout through both must give the same figures.  One JSON line at the end; `--append` adds it to bench/results.csv.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bench.ppo_case import Work, write, write_config
from bench.ppo_parity import check
from bench.results import Figure, add_option, append
from destruct.progress import tracked

ROOT = Path(__file__).resolve().parents[1]
WARM = 1  # iterations of a process that are not counted


@dataclass(frozen=True, slots=True)
class Side:
    """One way to do the work."""

    backend: str | None  # of ours; None is the peer
    ranks: int = 1
    threads: int = 2  # of each rank
    pure: bool = False  # without float32 master weights, as the peer


SIDES = {
    "ours": Side("single"),
    "peer": Side(None),
    "zero3": Side("deepspeed"),
    "zero3_two_ranks": Side("deepspeed", ranks=2, threads=1),
    "pure": Side("single", pure=True),
}


def floor_flops(work: Work, length: float) -> float:
    """Of the products that the work cannot do without.

    Every token of a rollout passes once through policy, reference, value and reward network, sampling apart; the two
    that train pass over it E times forward and twice that backward.  The head's rows are the response tokens, and so
    are those of the last feed-forward part, but in sampling and in the reward network.

    Args:
        length: mean tokens of a response.
    """
    h, t = work.hidden, work.prompt + length
    tokens, rows = work.batch * t, work.batch * length
    feed_forward, projections, attention = 2 * 3 * h * 4 * h, 2 * 4 * h * h, 4 * h * (t / 2)
    whole = tokens * work.layers * (feed_forward + projections + attention)
    read = whole - (tokens - rows) * feed_forward
    head = rows * 2 * h * work.vocab
    passes = 3 + 2 * 3 * work.epochs  # old logprobs, reference, value; E times both networks
    return passes * read + 2 * whole + (3 + 3 * work.epochs) * head


def matrix_rate(work: Work) -> float:
    """FLOP/s of the largest product of a layer, the best of five."""
    rows = work.micro * (work.prompt + work.response)
    a = torch.randn(rows, work.hidden, dtype=work.torch_dtype)
    b = torch.randn(4 * work.hidden, work.hidden, dtype=work.torch_dtype)
    best = float("inf")
    for _ in range(5):
        begun = time.perf_counter()
        for _ in range(10):
            torch.nn.functional.linear(a, b)
        best = min(best, (time.perf_counter() - begun) / 10)
    return 2 * rows * work.hidden * 4 * work.hidden / best


def run_side(command: list[str], threads: int) -> dict[str, Any]:
    """What one fresh process tells."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
    return json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])


def run(side: Side, work: Work, folder: Path, count: int) -> dict[str, Any]:
    """What a fresh process, or two, tell of so many iterations."""
    if side.backend is None:
        module = ["-m", "bench.ppo_trl", str(folder), json.dumps(asdict(work)), str(count)]
    else:
        config = write_config(work, folder, side.backend, count)
        ends = "never" if work.mean_length is None else "eos"
        module = ["-m", "bench.ppo_ours", str(config), str(count), ends, *(["pure"] if side.pure else [])]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={side.ranks}"]
    return run_side([sys.executable, *(launcher if side.ranks > 1 else []), *module], side.threads)


def measure(work: Work, options: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], list[Figure]]:
    """All sides by turns; medians over all counted iterations, and the lowest and highest ratio of a turn; the figures
    of every repetition."""
    told: dict[str, list[dict[str, Any]]] = {name: [] for name in options.sides}
    for name in tracked(options.sides * options.turns, "iteration", "processes"):
        told[name].append(run(SIDES[name], work, folder, options.iterations + WARM))
    seconds = {side: [each["seconds"][WARM:] for each in found] for side, found in told.items()}
    figures: dict[str, Any] = {
        f"{side}_s": statistics.median(s for each in found for s in each) for side, found in seconds.items()
    }
    medians = {side: [statistics.median(each) for each in found] for side, found in seconds.items()}
    for name, (slow, fast) in RATIOS.items():
        if slow in told and fast in told:
            ratios = [a / b for a, b in zip(medians[slow], medians[fast], strict=True)]
            figures[name] = figures[f"{slow}_s"] / figures[f"{fast}_s"]
            figures |= {f"{name}_low": min(ratios), f"{name}_high": max(ratios)}
    for side, what in itertools.product(told, ("rss_mib", "transient_mib")):
        figures[f"{side}_{what}"] = statistics.median(each[what] for each in told[side])
    measured = [Figure(f"{side} iteration", "s", [s for each in seconds[side] for s in each]) for side in told]
    for side, what in itertools.product(told, ("rss", "transient")):
        measured.append(Figure(f"{side} {what}", "MiB", [each[f"{what}_mib"] for each in told[side]]))
    lengths = [length for side in told for each in told[side] for length in each["mean_lengths"][WARM:]]
    return figures | {"length": statistics.mean(lengths)}, measured


RATIOS = {
    "ratio": ("peer", "ours"),
    "ratio_zero3": ("peer", "zero3"),
    "ratio_pure": ("peer", "pure"),
    "two_ranks": ("zero3", "zero3_two_ranks"),
}
"""Figure -> the side whose time is divided, and the one by which."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    for name, size in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--eos", type=float, metavar="TOKENS", help="responses end, after so many tokens in the mean")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=["ours", "peer", "zero3"])
    parser.add_argument("--turns", type=int, default=3, help="processes of each side, by turns")
    parser.add_argument("--iterations", type=int, default=3, help="counted iterations of a process")
    add_option(parser)
    return parser.parse_args()


SIZES = {"vocab": 8192, "hidden": 256, "layers": 6, "prompt": 64, "response": 64, "batch": 32, "micro": 8, "epochs": 2}


def main() -> None:
    options = parse()
    work = Work(options.dtype, **{name: getattr(options, name) for name in SIZES}, mean_length=options.eos)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write(work, folder)
        gaps = check(work, 2) if "peer" in options.sides else None
        figures, measured = measure(work, options, folder)
    torch.set_num_threads(2)
    rate = matrix_rate(work)
    floor = floor_flops(work, figures["length"]) / rate
    if options.append:
        measured += [Figure(name, "1", [figures[name]]) for name in RATIOS if name in figures]
        sizes = "; ".join(f"{name} {size}" for name, size in asdict(work).items() if size is not None)
        append(options.append, "ppo_iteration", [*measured, Figure("floor", "s", [floor])], sizes)
    print(json.dumps({**asdict(work), **figures, "floor_s": floor, "matrix_flops": rate, "parity": gaps}))


if __name__ == "__main__":
    main()
