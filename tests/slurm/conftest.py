"""One cluster for all tests of this folder, and what several of them compare with."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.lives import final_digest
from tests.slurm.cluster import Cluster, Job, two_nodes
from tests.slurm.runs import MULTI, arguments, surroundings


@pytest.fixture(scope="session")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    with two_nodes(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def spread(cluster, tmp_path_factory) -> tuple[Job, Path]:
    """The multi-node script, one rank on each node, undisturbed: the job and the folder of its files."""
    folder = tmp_path_factory.mktemp("spread")
    return cluster.run("--ntasks-per-node=1", MULTI, *arguments(folder), **surroundings(folder)), folder


@pytest.fixture(scope="session")
def undisturbed(spread) -> str:
    """The digest of all that such a run ends with."""
    job, folder = spread
    assert job.end == ("COMPLETED", "0:0", "0"), job.log[-4000:]
    return final_digest(folder / "tiny")
