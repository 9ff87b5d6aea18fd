"""Jobs that are stopped, struck, or lose a node, on a real cluster: what is requeued, and what such a run ends with."""

import re
from contextlib import suppress
from pathlib import Path

import pytest

from tests.faults import digests
from tests.faults.lives import final_digest, newest, steps_in, steps_of
from tests.slurm.cluster import LIVES, ON_SLURM, Job
from tests.slurm.runs import FULL_LIVES, MULTI, SLEEP_S, arguments, begin, kill, ranks, surroundings, witnesses

pytestmark = ON_SLURM

in_full = pytest.mark.skipif(LIVES < FULL_LIVES, reason="a minute or more each: make slurm-test")


def lives_in(job: Job) -> list[str]:
    """What a job's log says of each of its lives."""
    return re.split(r"^destruct: job \d+, life \d+, .*\n", job.log, flags=re.M)[1:]


def assert_goes_on(job: Job, folder: Path, undisturbed: str, times: int) -> None:
    """It was requeued so often, each life went on where the one before had saved, and it ends as undisturbed."""
    assert job.end == ("COMPLETED", "0:0", str(times)), job.log[-6000:]
    first, *later = lives_in(job)
    assert len(later) == times and "resumed after update" not in first
    assert all("resumed after update" in life for life in later), job.log
    assert final_digest(folder / "tiny") == undisturbed
    assert not list(folder.glob("tiny.[0-9]*")), "nothing was put aside"


@pytest.mark.skipif(LIVES >= FULL_LIVES, reason="make slurm-test has five lives instead")
def test_a_run_that_is_warned_saves_is_requeued_and_ends_as_the_undisturbed_one(cluster, undisturbed, tmp_path):
    number = begin(cluster, tmp_path)
    cluster.call("scancel", "--signal=USR1", number)
    job = cluster.finish(number)
    assert_goes_on(job, tmp_path, undisturbed, times=1)
    assert "0: destruct: stopped by SIGUSR1" in lives_in(job)[0]
    assert f"destruct: job {number} ended with 75 and is requeued: 1 of at most 20 times" in lives_in(job)[0]
    alone = (cluster.rank_logs / f"destruct-{number}-0.log").read_text()
    assert "stopped by SIGUSR1" in alone and "resumed after update" in alone, "the log of a life follows that before"


@in_full
def test_five_lives_between_time_limits_end_as_the_undisturbed_run(cluster, undisturbed, tmp_path):
    """A limit of one minute, and a run that takes more than four of them."""
    options = ("--ntasks-per-node=1", "--time=1", "--signal=USR1@1")
    variables = surroundings(tmp_path, WITNESS_SLEEPS_S=str(SLEEP_S))
    job = cluster.finish(cluster.submit(*options, MULTI, *arguments(tmp_path), **variables), timeout_s=1200)
    times = int(job.fields["Restarts"])
    assert times >= FULL_LIVES - 1, "a life made more updates than a minute has room for"
    assert_goes_on(job, tmp_path, undisturbed, times)
    assert "TIME LIMIT" not in job.log, "each life ended before"
    assert [life.count("stopped by SIGUSR1") for life in lives_in(job)] == [1] * times + [0]


@in_full
def test_a_run_that_is_not_warned_saves_at_its_time_limit_and_is_requeued(cluster, undisturbed, tmp_path):
    number = begin(cluster, tmp_path, "--time=1", "--signal=CONT@1", sleep_s=SLEEP_S / 2)
    cluster.wait_for(lambda: cluster.fields(number)["Restarts"] == "1", "the limit is over")
    cluster.call("scontrol", "update", f"jobid={number}", "timelimit=30")
    job = cluster.finish(number)
    assert_goes_on(job, tmp_path, undisturbed, times=1)
    assert "DUE TO TIME LIMIT" in job.log and "stopped by SIGTERM" in job.log


def test_a_job_that_is_cancelled_saves_and_is_not_requeued(cluster, tmp_path):
    number = begin(cluster, tmp_path)
    made = steps_in(tmp_path / "tiny")
    processes = ranks(tmp_path)
    cluster.call("scancel", number)
    job = cluster.finish(number)
    assert (job.fields["JobState"], job.fields["Restarts"]) == ("CANCELLED", "0"), job.log
    assert "0: destruct: stopped by SIGTERM" in job.log and "and is requeued" not in job.log
    assert len(processes) == 2 and not ranks(tmp_path)
    name = newest(tmp_path / "tiny")
    assert steps_of(name) >= made and digests.of_checkpoint(tmp_path / "tiny" / "checkpoints" / str(name))
    assert not (tmp_path / "tiny" / "summary.json").exists()


def test_a_rank_that_is_killed_again_and_again_ends_the_job_with_76_at_the_limit_of_requeues(cluster, tmp_path):
    """Rank 1 dies on the second node in the first update of each life, while rank 0 waits for it."""
    requeues = int(LIVES >= FULL_LIVES)  # a life of it is enough in the whole suite
    variables = surroundings(tmp_path, WITNESS_DIES="1", REQUEUES=str(requeues))
    job = cluster.run("--ntasks-per-node=1", MULTI, *arguments(tmp_path), **variables)
    assert job.end == ("FAILED", "76:0", str(requeues)), job.log[-6000:]
    assert job.log.count("1: rank 1 was killed by SIGKILL") == requeues + 1
    problem, remedy = job.log.splitlines()[-2:]
    number, life = job.fields["JobId"], requeues + 1
    assert problem == f"destruct: job {number} ended with 76 in life {life}, and REQUEUES={requeues}"
    assert remedy.startswith("  remedy: see above why")
    assert len(witnesses(tmp_path)) == 2 and not ranks(tmp_path)
    assert not (tmp_path / "tiny" / "summary.json").exists()


@in_full
@pytest.mark.parametrize("generation", [1, 2], ids=["task", "slurmstepd"])
def test_a_step_that_is_killed_is_requeued_and_ends_as_the_undisturbed_run(cluster, undisturbed, tmp_path, generation):
    """Above a rank is the task, rank.sh, and above that one slurmstepd; here those of the second node are killed."""
    number = begin(cluster, tmp_path)
    victim = ranks(tmp_path)[1].parents()[generation - 1]
    assert ("rank.sh", "slurmstepd")[generation - 1] in " ".join(victim.cmdline())
    kill(victim)
    job = cluster.finish(number)
    assert_goes_on(job, tmp_path, undisturbed, times=1)
    assert not ranks(tmp_path)


@in_full
def test_a_job_that_loses_a_node_is_requeued_by_slurm_and_ends_as_the_undisturbed_run(cluster, undisturbed, tmp_path):
    number = begin(cluster, tmp_path)
    node = "nodename=127.0.0.2"
    cluster.call("scontrol", "update", node, "state=DOWN", "reason=test")
    cluster.wait_for(lambda: cluster.fields(number)["Restarts"] == "1", "Slurm requeues it")
    with suppress(AssertionError):  # it may have come back by itself
        cluster.call("scontrol", "update", node, "state=RESUME")
    job = cluster.finish(number)
    assert_goes_on(job, tmp_path, undisturbed, times=1)
    assert "DUE TO NODE FAILURE" in job.log and "ended with" not in job.log, "not requeued by its own script too"


@in_full
def test_a_job_that_is_preempted_is_requeued_by_slurm_and_ends_as_the_undisturbed_run(cluster, undisturbed, tmp_path):
    number = begin(cluster, tmp_path)
    urgent = cluster.submit("--partition=urgent", "--nodes=2", "--exclusive", "--wrap=sleep 1")
    assert cluster.finish(urgent).end == ("COMPLETED", "0:0", "0")
    job = cluster.finish(number)
    assert_goes_on(job, tmp_path, undisturbed, times=1)
    assert "DUE TO PREEMPTION" in job.log and "ended with" not in job.log, "not requeued by its own script too"
