"""One PPO iteration against TRL 1.12's, on equal work: the same weights, prompts, token counts and optimizer steps.

    python -m bench.ppo_iteration --dtype bfloat16 --vocab 8192 --hidden 256 --layers 6 --prompt 64 --response 64 \\
        --batch 32 --micro 8 --epochs 2

Both sides run by turns in fresh processes with the same number of threads.  The parity gate (bench/ppo_parity.py) comes
first: one rollout through both must give the same figures.  One JSON line at the end.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bench.ppo_case import Work, write, write_config
from bench.ppo_parity import check

ROOT = Path(__file__).resolve().parents[1]
WARM = 1  # iterations of a process that are not counted


def floor_seconds(work: Work, threads: int) -> tuple[float, float]:
    """Seconds that the products of the work alone would take at this machine's rate, and that rate in FLOP/s.

    Every token of a rollout passes through policy, reference, value and reward network once, sampling apart; the two
    that train pass over it E times forward and twice that backward.  The head's rows are the response tokens.
    """
    torch.set_num_threads(threads)
    tokens, rows = work.batch * (work.prompt + work.response), work.batch * work.response
    layer = 4 * work.hidden**2 + 3 * work.hidden * 4 * work.hidden
    body, head = 2 * work.layers * layer * tokens, 2 * work.hidden * work.vocab * rows
    attention = 4 * work.hidden * work.layers * tokens * (work.prompt + work.response) / 2
    passes = 4 + 1 + 2 * 3 * work.epochs  # old logprobs, reference, value, reward; sampling; E times both networks
    flops = passes * (body + attention) + (1 + 2 + 3 * work.epochs) * head
    rate = matrix_rate(work)
    return flops / rate, rate


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


def ours(config: Path, iterations: int, ends: str, ranks: int, threads: int) -> dict[str, Any]:
    """Our side."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    module = ["-m", "bench.ppo_ours", str(config), str(iterations), ends]
    return run_side([*(launcher if ranks > 1 else [sys.executable]), *module], threads)


def measure(work: Work, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Both sides by turns; medians over all counted iterations, and the lowest and highest ratio of a turn."""
    count, ends = options.iterations + WARM, "never" if work.mean_length is None else "eos"
    config = write_config(work, folder, options.backend, count)
    told: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": []}
    for _ in range(options.turns):
        told["ours"].append(ours(config, count, ends, options.ranks, options.threads))
        peer = [sys.executable, "-m", "bench.ppo_trl", str(folder), json.dumps(asdict(work)), str(count)]
        told["peer"].append(run_side(peer, options.threads))
    seconds = {side: [each["seconds"][WARM:] for each in found] for side, found in told.items()}
    medians = {side: [statistics.median(each) for each in found] for side, found in seconds.items()}
    ratios = [peer / mine for mine, peer in zip(medians["ours"], medians["peer"], strict=True)]
    middle = {side: statistics.median(s for each in found for s in each) for side, found in seconds.items()}
    figures: dict[str, Any] = {"ours_s": middle["ours"], "peer_s": middle["peer"]}
    figures |= {"ratio": middle["peer"] / middle["ours"], "ratio_low": min(ratios), "ratio_high": max(ratios)}
    for what in ("rss_mib", "transient_mib"):
        figures |= {f"{side}_{what}": statistics.median(each[what] for each in told[side]) for side in told}
    figures["mean_length"] = statistics.mean(length for each in told["ours"] for length in each["mean_lengths"][WARM:])
    return figures


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    for name, size in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--eos", type=float, metavar="TOKENS", help="responses end, after so many tokens in the mean")
    parser.add_argument("--backend", choices=("single", "deepspeed", "fsdp"), default="single")
    parser.add_argument("--ranks", type=int, default=1, help="of our side")
    parser.add_argument("--threads", type=int, default=2, help="of every process")
    parser.add_argument("--turns", type=int, default=3, help="processes of each side, by turns")
    parser.add_argument("--iterations", type=int, default=3, help="counted iterations of a process")
    return parser.parse_args()


SIZES = {"vocab": 8192, "hidden": 256, "layers": 6, "prompt": 64, "response": 64, "batch": 32, "micro": 8, "epochs": 2}


def main() -> None:
    options = parse()
    work = Work(options.dtype, **{name: getattr(options, name) for name in SIZES}, mean_length=options.eos)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write(work, folder)
        gaps = check(work, options.threads)
        figures = measure(work, options, folder)
    floor, rate = floor_seconds(work, options.threads)
    print(json.dumps({**asdict(work), **figures, "floor_s": floor, "matrix_flops": rate, "parity": gaps}))


if __name__ == "__main__":
    main()
