"""Jobs of one name that follow each other, for clusters that do not requeue: the next one goes on, or is not needed."""

from pathlib import Path

from tests.faults.lives import final_digest
from tests.slurm.cluster import ON_SLURM, Cluster
from tests.slurm.runs import MULTI, arguments, surroundings, wait_for_updates
from tests.slurm.test_lives import in_full
from tests.tiny import write_config

pytestmark = ON_SLURM


def chain(cluster: Cluster, name: str, *arguments: str, **variables: str) -> list[str]:
    """Submit three jobs that follow each other, the later ones told so; returns their numbers."""
    options = ("--hold", f"--job-name={name}", "--dependency=singleton", "--no-requeue", "--ntasks-per-node=1")
    told = [{}, {"DESTRUCT_AGAIN": "1"}, {"DESTRUCT_AGAIN": "1"}]
    numbers = [cluster.submit(*options, MULTI, *arguments, CHAIN="true", **variables, **each) for each in told]
    cluster.call("scontrol", "release", *numbers)
    return numbers


def ends(cluster: Cluster, numbers: list[str]) -> list[tuple[str, str]]:
    return [cluster.finish(number).end[:2] for number in numbers]


def test_a_mistake_in_the_first_job_of_a_chain_cancels_the_others_and_no_other_persons_or_names(cluster, tmp_path):
    other = cluster.submit("--hold", "--job-name=other", "--wrap=true")
    numbers = chain(cluster, "mistaken", str(write_config(tmp_path)), "kl.coeff=0.1")
    assert ends(cluster, numbers) == [("FAILED", "2:0"), ("CANCELLED", "0:0"), ("CANCELLED", "0:0")]
    assert cluster.fields(other)["JobState"] == "PENDING"
    cluster.call("scancel", other)


@in_full
def test_the_second_job_of_a_chain_ends_the_run_as_undisturbed_and_the_third_is_cancelled(
    cluster, undisturbed, tmp_path: Path
):
    """The first one is told to stop, which leaves the others as they are; nothing is requeued."""
    config, *overrides = arguments(tmp_path)
    variables = surroundings(tmp_path, WITNESS_SLEEPS_S="1")
    numbers = cluster.launch("--nodes=2", "--chain=3", "--config", config, *overrides, **variables)
    wait_for_updates(cluster, tmp_path, 2)
    cluster.call("scancel", "--signal=USR1", numbers[0])
    assert ends(cluster, numbers) == [("FAILED", "75:0"), ("COMPLETED", "0:0"), ("CANCELLED", "0:0")]
    assert "resumed after update" in cluster.finish(numbers[1]).log
    assert final_digest(tmp_path / "tiny") == undisturbed
