"""The sbatch scripts on a real cluster of two nodes: what the ranks are told, measure, and end with."""

import json
import re
import sys
from pathlib import Path

import pytest

from tests.distributed.launching import run, torchrun
from tests.faults.digests import figures
from tests.faults.lives import final_digest
from tests.slurm.cluster import NODES, ON_SLURM, Job
from tests.slurm.runs import MULTI, SINGLE, UPDATES, arguments, surroundings, witnesses
from tests.tiny import write_config

pytestmark = ON_SLURM


@pytest.fixture(scope="module")
def close(cluster, tmp_path_factory) -> tuple[Job, Path]:
    """The single-node script, two ranks on one node."""
    folder = tmp_path_factory.mktemp("close")
    return cluster.run("--ntasks-per-node=2", SINGLE, *arguments(folder), **surroundings(folder)), folder


def test_a_job_on_two_nodes_trains_to_its_end(spread):
    job, folder = spread
    assert job.end == ("COMPLETED", "0:0", "0"), job.log[-4000:]
    assert job.fields["NodeList"] == NODES
    last = f"{UPDATES}/{UPDATES}"
    assert len(re.findall(rf"^0: ppo +{last}", job.log, re.M)) == 1, "the first rank speaks, under its label"
    assert "1: ppo" not in job.log
    summary = json.loads((folder / "tiny" / "summary.json").read_text())
    assert (summary["updates"], summary["world_size"]) == (UPDATES, 2)


def test_all_that_a_rank_says_is_in_a_log_of_its_own_too(cluster, spread):
    """The job's log is what srun has put together: without the labels it is the ranks' logs."""
    job, _ = spread
    for rank in range(2):
        alone = (cluster.rank_logs / f"destruct-{job.fields['JobId']}-{rank}.log").read_text().splitlines()
        labelled = [line[3:] for line in job.log.splitlines() if line.startswith(f"{rank}: ")]
        assert sorted(alone) == sorted(labelled) and bool(alone) is (rank == 0)


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
    """And end with the same weights, masters, moments and places in the data."""
    for job, _ in (spread, close):
        assert job.fields["JobState"] == "COMPLETED", job.log[-4000:]
    monkeypatch.setenv("WITNESS_FOLDER", str(tmp_path))
    config, *overrides = arguments(tmp_path)
    done = run(torchrun(2, "-m", "destruct.train", "--config", config, *overrides), module_path=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert sum("ppo/steps" in line for line in figures(tmp_path / "tiny")) == UPDATES
    wanted = final_digest(tmp_path / "tiny")
    assert [final_digest(folder / "tiny") for _, folder in (close, spread)] == [wanted, wanted]


def test_a_mistake_in_the_config_ends_the_job_with_2_and_two_lines_in_the_log(cluster, tmp_path):
    """The other ranks wait for a moment, are ended by Slurm, and their code must not hide the first one's."""
    job = cluster.run("--ntasks-per-node=2", MULTI, str(write_config(tmp_path)), "kl.coeff=0.1")
    assert job.end == ("FAILED", "2:0", "0"), job.log
    said = [line for line in job.log.splitlines() if re.match(r"\d: ", line) and "slurmstepd" not in line]
    assert said == ["0: destruct: command line: unknown key 'kl.coeff'", "0:   remedy: did you mean 'kl.coef'?"]


def test_a_command_typed_inside_an_allocation_is_alone(cluster):
    """It has Slurm's variables of four tasks, but no srun started it: it must not wait for three others."""
    code = "import os; from destruct.train import world_size; print(os.environ['SLURM_NTASKS'], world_size())"
    assert cluster.call("salloc", "--nodes=2", "--ntasks=4", sys.executable, "-c", code) == "4 1\n"
