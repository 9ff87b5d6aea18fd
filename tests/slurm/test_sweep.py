"""The array of a grid on a real cluster: one run for each point, and one point requeued without the others."""

import re
from pathlib import Path

import pytest
import yaml

from tests.distributed.launching import ROOT
from tests.slurm.cluster import ON_SLURM, Cluster, Job
from tests.slurm.runs import SWEEP
from tests.tiny import write_config

pytestmark = ON_SLURM

STARTED = """
import os, signal

if os.environ.get("SLURM_ARRAY_TASK_ID") == "1" and "RANK" in os.environ and "SLURM_RESTART_COUNT" not in os.environ:
    os.kill(os.getpid(), signal.SIGKILL)
"""
"""Python imports it first: the rank of the second point is killed in its first life."""

SHORT = ("run.num_epochs=1", "run.updates_per_epoch=1", "warmup.lm_updates=1")


def script(folder: Path, points: str) -> str:
    """The script with another grid, as a person would write it."""
    text, count = re.subn(r"^POINTS=.*$", f"POINTS=({points})", (ROOT / SWEEP).read_text(), flags=re.M)
    assert count == 1
    (folder / "sweep.sbatch").write_text(text)
    return str(folder / "sweep.sbatch")


def submit(cluster: Cluster, folder: Path, array: str, *overrides: str, **variables: str) -> str:
    """A sweep over two clip ranges; returns the array's number."""
    options = (f"--array={array}", "--ntasks-per-node=1", "--mem=0", f"--output={folder}/%x-%A_%a.out")
    written = script(folder, '"ppo.clip_range="{0.1,0.3}')
    variables = {"PYTHONPATH": str(folder)} | variables
    return cluster.submit(*options, written, str(write_config(folder)), *overrides, **variables)


def tasks(cluster: Cluster, number: str, *wanted: int) -> list[Job]:
    return [cluster.finish(f"{number}_{task}") for task in wanted]


def test_each_point_of_a_grid_has_a_run_of_its_name_and_one_that_fails_is_requeued_alone(cluster, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(STARTED)
    sweep = ("--sweep=ppo.clip_range=0.1,0.3", "--at-once=2", "--config", str(write_config(tmp_path)))
    (number,) = cluster.launch(*sweep, *SHORT, output="%x-%A_%a.out", PYTHONPATH=f"{tmp_path}:{ROOT}")
    first, second = tasks(cluster, number, 0, 1)
    assert (first.end, second.end) == (("COMPLETED", "0:0", "0"), ("COMPLETED", "0:0", "1")), first.log + second.log
    assert f"destruct: job {number}_1 ended with 76 and is requeued: 1 of at most 20 times" in second.log
    runs = {path.parent.name: yaml.safe_load(path.read_text()) for path in tmp_path.glob("*/resolved.yaml")}
    ranges = {name: settings["ppo"]["clip_range"] for name, settings in runs.items()}
    assert ranges == {"tiny-0-ppo.clip_range-0.1": 0.1, "tiny-1-ppo.clip_range-0.3": 0.3}
    assert all((tmp_path / name / "summary.json").exists() for name in ranges)
    assert {path.name for path in cluster.rank_logs.glob(f"*{number}*")} == {f"tiny-{number}_{n}-0.log" for n in (0, 1)}


@pytest.mark.parametrize(("array", "tasks_are"), [("0-2", "3 tasks up to 2"), ("0", "1 tasks up to 0")])
def test_an_array_that_is_not_the_grid_is_refused_with_2_and_two_lines_in_every_task(
    cluster, tmp_path, array, tasks_are
):
    number = submit(cluster, tmp_path, array)
    for job in tasks(cluster, number, *range(int(array[-1]) + 1)):
        assert job.end == ("FAILED", "2:0", "0"), job.log
        assert job.log.splitlines()[-2:] == [
            f"destruct: --array has {tasks_are}, and POINTS 2 points",
            "  remedy: sbatch --array=0-1, or PART=true sbatch --array=... for some of them",
        ]


def test_a_part_of_a_grid_runs_where_it_is_asked_for(cluster, tmp_path):
    number = submit(cluster, tmp_path, "1", "kl.coeff=0.1", PART="true")
    (job,) = tasks(cluster, number, 1)
    assert job.end == ("FAILED", "2:0", "0") and "unknown key 'kl.coeff'" in job.log, "as far as the run itself"
