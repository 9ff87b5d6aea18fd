"""The whole PPO job by several strategies, for `python -m bench.curriculum --ppo`: does the curriculum hold there too?

Runs `destruct.train` on the six embedded sources of configs/local.yaml (one of them noise), in one process each, and
reads what the run itself reports: its summary and its metrics.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.curriculum_results import ROOT
from destruct.errors import DestructError
from destruct.exits import Exit
from destruct.progress import progress

CONFIG = ROOT / "configs" / "local.yaml"
NOISE = "noise"
SETTLED = 0.2
"""Part of the updates after which the noise's share is taken."""


def compare(
    strategies: Sequence[str], seeds: Sequence[int], jobs: int, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Run every strategy with every seed, the seeds being pairs.

    Args:
        jobs: runs at a time, of one thread each.
        overrides: further `key.sub=value` of every run.

    Returns:
        per strategy means over the seeds: `validation_loss` (nats/token, learnable sources), `reward`, `kl_max`,
        `kl_bound`, `noise_share` (of the weights after a fifth of the updates), `probe_share`; and `validation_ratio`
        of each later strategy to the first one, per seed.

    Raises:
        DestructError: a run failed.
    """
    pairs = [(strategy, seed) for seed in seeds for strategy in strategies]
    running: list[subprocess.Popen[str]] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        ThreadPoolExecutor(jobs) as pool,
        progress("PPO jobs", len(pairs), "runs") as advance,
    ):
        made = [pool.submit(train, *pair, Path(folder), overrides, running) for pair in pairs]
        for one in made:
            one.add_done_callback(lambda _: advance())
        try:
            results = {pair: one.result() for pair, one in zip(pairs, made, strict=True)}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in running:
                process.terminate()
            raise
    report: dict[str, Any] = {}
    for strategy in strategies:
        own = [results[strategy, seed] for seed in seeds]
        report[strategy] = {name: statistics.fmean(one[name] for one in own) for name in own[0]}
    first, *others = strategies
    report["validation_ratio"] = {
        other: [results[other, seed]["validation_loss"] / results[first, seed]["validation_loss"] for seed in seeds]
        for other in others
    }
    return report


def train(
    strategy: str, seed: int, folder: Path, overrides: Sequence[str], running: list[subprocess.Popen[str]]
) -> dict[str, float]:
    """One run's figures; the fields of `compare`.

    Args:
        running: its process is added.

    Raises:
        DestructError: it did not end well.
    """
    name = f"{strategy}-{seed}"
    settings = [f"run.folder={folder}", f"run.name={name}", f"run.seed={seed}", f"curriculum.strategy={strategy}"]
    command = [sys.executable, "-m", "destruct.train", "--config", str(CONFIG), "engine.backend=single", *settings]
    print(f"{name}: begun", file=sys.stderr)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [*command, *overrides],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C reaches this process alone, which ends the others
    ) as process:
        running.append(process)
        _, said = process.communicate()
    if process.returncode:
        raise DestructError(
            f"{name} ended with code {process.returncode}: {said.strip()[-300:]}",
            "mend what it names; nothing is kept of these runs",
            Exit.ENVIRONMENT,
        )
    summary = json.loads((folder / name / "summary.json").read_text(encoding="utf-8"))
    lines = map(json.loads, (folder / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    rounds = [line for line in lines if "curriculum/round" in line]
    settled = [line for line in rounds if line["step"] >= SETTLED * summary["updates"]]
    figures = {
        "validation_loss": summary["validation_loss_after"]["mean"],
        "reward": summary["reward_after"],
        "kl_max": summary["kl_max"],
        "kl_bound": summary["kl_bound"],
        "noise_share": statistics.fmean(line[f"curriculum/weight/{NOISE}"] for line in settled),
        "probe_share": rounds[-1]["curriculum/probe_share"],
    }
    print(f"{name}: {json.dumps({key: round(value, 4) for key, value in figures.items()})}", file=sys.stderr)
    return figures
