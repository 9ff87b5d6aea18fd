"""One run by each launcher: the literal `deepspeed -m` line, torchrun, `destruct launch local`, and plain Python."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.launching import ROOT, run, torchrun
from tests.faults.digests import figures
from tests.tiny import write_config

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

COMMANDS = {
    "deepspeed": ["deepspeed", "--num_gpus", "2", "-m", "destruct.train"],
    "torchrun": torchrun(2, "-m", "destruct.train"),
    "local": [sys.executable, "-m", "destruct.launch", "local", "--ranks", "2"],
    "python": [sys.executable, "-m", "destruct.train"],
}
"""Two ranks, and one by the last."""


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, dict[str, subprocess.CompletedProcess[str]]]:
    """The folder of the runs, each in one of its launcher's name, and what they said."""
    folder = tmp_path_factory.mktemp("launchers")
    short = ["run.num_epochs=1", "run.updates_per_epoch=2", "run.samples_per_update=16", "run.checkpoint_every=0"]
    config = str(write_config(folder))
    zero3 = json.loads((ROOT / "ds_configs" / "zero3.json").read_text())
    (folder / "float32.json").write_text(json.dumps(zero3 | {"bf16": {"enabled": False}}))
    short.append(f"engine.deepspeed={folder / 'float32.json'}")
    said = {}
    for name, command in COMMANDS.items():
        done = run([*command, "--config", config, f"run.name={name}", *short])
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        said[name] = done
    return folder, said


def test_two_ranks_measure_the_same_to_the_last_digit_whatever_starts_them(runs):
    """tests/slurm holds srun against torchrun, tests/launch/test_hosts.py several hosts."""
    folder, _ = runs
    measured = {name: figures(folder / name) for name in ("deepspeed", "torchrun", "local")}
    assert sum("ppo/steps" in line for line in measured["deepspeed"]) == 2
    assert measured["torchrun"] == measured["deepspeed"]
    assert measured["local"] == measured["deepspeed"]


def test_every_line_is_under_its_ranks_name_and_in_its_ranks_file(runs):
    folder, said = runs
    shown = said["local"].stdout.splitlines()
    assert any(line.startswith("[rank 0] ppo        2/2") for line in shown)
    by_rank = {rank: [line[9:] for line in shown if line.startswith(f"[rank {rank}] ")] for rank in range(2)}
    assert len(shown) == sum(map(len, by_rank.values())) and not said["local"].stderr
    for rank, words in by_rank.items():
        path = folder / "local.output" / f"rank-{rank}.log"
        assert path.exists() and path.read_text().splitlines() == words


def test_the_order_of_the_data_is_that_of_two_ranks_at_one_too(runs):
    folder, _ = runs
    states = {
        name: json.loads((folder / name / "checkpoints/step-00000002/state.json").read_text()) for name in COMMANDS
    }
    assert all(state["mixture"] == states["python"]["mixture"] for state in states.values())
    logged = {name: lines(folder / name / "metrics.jsonl") for name in ("python", "deepspeed")}
    one, two = ([line["warmup/lm_loss"] for line in each if "warmup/lm_loss" in line] for each in logged.values())
    assert one == pytest.approx(two, rel=1e-5), "another order differs by 4e-3"
    befores = [next(line for line in each if line["phase"] == "before") for each in logged.values()]
    one, two = ({name: x for name, x in before.items() if name.startswith("validation/")} for before in befores)
    assert one == pytest.approx(two, rel=1e-6)
    updates = [next(line for line in each if "ppo/steps" in line) for each in logged.values()]
    names = [name for name in updates[0] if name.startswith(("ppo/", "rollout/", "kl/"))]
    assert len(names) > 20
    one, two = ({name: update[name] for name in names} for update in updates)
    assert one == pytest.approx(two, rel=1e-3, abs=1e-6), "whitening, means and extremes are over all ranks"


def test_the_first_rank_of_two_writes_its_half_of_an_updates_rollouts_and_one_rank_all(runs):
    folder, _ = runs
    first = {
        name: {(s["prompt"], s["continuation"]) for s in lines(folder / name / "samples.jsonl") if s["update"] == 0}
        for name in COMMANDS
    }
    assert first["torchrun"] == first["deepspeed"] == first["local"]
    assert first["deepspeed"] < first["python"], "the windows of the first update"
