"""The sbatch scripts on a real cluster of two nodes: `launch/local_slurm.sh` starts it for this module."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.distributed.launching import run, torchrun
from tests.slurm.cluster import NODES, Cluster, Job, two_nodes, why_not
from tests.tiny import write_config

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.distributed,
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]

SINGLE, MULTI = "launch/slurm_single_node.sbatch", "launch/slurm_multi_node.sbatch"

WITNESS = """
import json, os, pathlib, signal

folder, rank = pathlib.Path(os.environ["WITNESS_FOLDER"]), os.environ["RANK"]
names = ("MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "LOCAL_WORLD_SIZE")
seen = {name: os.environ[name] for name in (*names, "OMP_NUM_THREADS")}
node = os.environ.get("SLURMD_NODENAME")
(folder / f"rank-{rank}.json").write_text(json.dumps({"pid": os.getpid(), "node": node, "seen": seen}))
calls = 0

def one(prompts, responses, continuations):
    global calls
    calls += 1
    if calls == 2 and rank == os.environ.get("WITNESS_DIES"):
        os.kill(os.getpid(), signal.SIGKILL)
    return [1.0] * len(responses)
"""
"""A reward that writes down which rank asks for it, and where; at its second call it can kill its rank."""

OVERRIDES = ('reward.terms={"witness:one": 1.0}', "run.num_epochs=1", "run.updates_per_epoch=2", "warmup.lm_updates=1")
"""Blanks and quotes included, which have to reach every rank as they are."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    with two_nodes(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


def arguments(folder: Path) -> tuple[str, ...]:
    """What follows the script's name: a config whose run goes below `folder`, and overrides."""
    (folder / "witness.py").write_text(WITNESS)
    return str(write_config(folder)), *OVERRIDES


def surroundings(folder: Path) -> dict[str, str]:
    return {"PYTHONPATH": str(folder), "WITNESS_FOLDER": str(folder)}


def witnesses(folder: Path) -> list[dict]:
    """What each rank wrote down, in the order of ranks."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("rank-*.json"))]


def figures(folder: Path) -> list[dict]:
    """All that a run measured, without its times and its memory."""
    lines = [json.loads(line) for line in (folder / "tiny" / "metrics.jsonl").read_text().splitlines()]
    return [{name: x for name, x in line.items() if not name.startswith(("time/", "memory/"))} for line in lines]


@pytest.fixture(scope="module")
def spread(cluster, tmp_path_factory) -> tuple[Job, Path]:
    """The multi-node script, one rank on each node: the job and the folder of its files."""
    folder = tmp_path_factory.mktemp("spread")
    return cluster.run("--ntasks-per-node=1", MULTI, *arguments(folder), **surroundings(folder)), folder


@pytest.fixture(scope="module")
def close(cluster, tmp_path_factory) -> tuple[Job, Path]:
    """The single-node script, two ranks on one node."""
    folder = tmp_path_factory.mktemp("close")
    return cluster.run("--ntasks-per-node=2", SINGLE, *arguments(folder), **surroundings(folder)), folder


def test_a_job_on_two_nodes_trains_to_its_end(spread):
    job, folder = spread
    assert (job.fields["JobState"], job.fields["ExitCode"]) == ("COMPLETED", "0:0"), job.log[-4000:]
    assert job.fields["NodeList"] == NODES
    assert job.log.count("0: ppo        2/2") == 1 and "1: ppo" not in job.log, "the first rank speaks, under its label"
    summary = json.loads((folder / "tiny" / "summary.json").read_text())
    assert (summary["updates"], summary["world_size"]) == (2, 2)


def test_every_rank_knows_its_place_and_all_meet_at_a_port_made_of_the_jobs_number(spread, close):
    for (job, folder), local in ((spread, 1), (close, 2)):
        first = witnesses(folder)[0]["node"]
        shared = {
            "MASTER_ADDR": first,
            "MASTER_PORT": str(10000 + int(job.fields["JobId"]) % 20000),
            "WORLD_SIZE": "2",
            "LOCAL_SIZE": str(local),
            "LOCAL_WORLD_SIZE": str(local),
            "OMP_NUM_THREADS": "1",
        }
        for rank, witness in enumerate(witnesses(folder)):
            assert witness["seen"] == shared | {"RANK": str(rank), "LOCAL_RANK": str(rank % local)}
    assert [witness["node"] for witness in witnesses(spread[1])] == ["127.0.0.1", "127.0.0.2"]
    assert len({witness["node"] for witness in witnesses(close[1])}) == 1


def test_one_node_two_nodes_and_torchrun_measure_the_same_to_the_last_digit(spread, close, tmp_path, monkeypatch):
    for job, _ in (spread, close):
        assert job.fields["JobState"] == "COMPLETED", job.log[-4000:]
    monkeypatch.setenv("WITNESS_FOLDER", str(tmp_path))
    config, *overrides = arguments(tmp_path)
    done = run(torchrun(2, "-m", "destruct.train", "--config", config, *overrides), module_path=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    wanted = figures(tmp_path)
    assert len([line for line in wanted if "ppo/steps" in line]) == 2
    assert figures(close[1]) == wanted
    assert figures(spread[1]) == wanted


def test_a_mistake_in_the_config_ends_the_job_with_2_and_two_lines_in_the_log(cluster, tmp_path):
    """The other ranks wait for a moment, are ended by Slurm, and their code must not hide the first one's."""
    job = cluster.run("--ntasks-per-node=2", MULTI, str(write_config(tmp_path)), "kl.coeff=0.1")
    state = [job.fields[name] for name in ("JobState", "ExitCode", "Restarts")]
    assert state == ["FAILED", "2:0", "0"], job.log
    said = [line for line in job.log.splitlines() if re.match(r"\d: ", line) and "slurmstepd" not in line]
    assert said == ["0: destruct: command line: unknown key 'kl.coeff'", "0:   remedy: did you mean 'kl.coef'?"]


def test_a_rank_that_is_killed_ends_the_job_with_76_and_leaves_no_process(cluster, tmp_path):
    """Rank 1 dies on the second node in the middle of the run, while rank 0 waits for it."""
    job = cluster.run("--ntasks-per-node=1", MULTI, *arguments(tmp_path), WITNESS_DIES="1", **surroundings(tmp_path))
    assert (job.fields["JobState"], job.fields["ExitCode"]) == ("FAILED", "76:0"), job.log[-4000:]
    assert "1: rank 1 was killed by SIGKILL" in job.log
    pids = {witness["pid"] for witness in witnesses(tmp_path)}
    left = [p for p in psutil.process_iter(["status"]) if p.pid in pids and p.info["status"] != psutil.STATUS_ZOMBIE]
    assert len(pids) == 2 and not left
    assert not (tmp_path / "tiny" / "summary.json").exists()


def test_a_command_typed_inside_an_allocation_is_alone(cluster):
    """It has Slurm's variables of four tasks, but no srun started it: it must not wait for three others."""
    code = "import os; from destruct.train import world_size; print(os.environ['SLURM_NTASKS'], world_size())"
    assert cluster.call("salloc", "--nodes=2", "--ntasks=4", sys.executable, "-c", code) == "4 1\n"
