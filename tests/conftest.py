"""Settings of the whole suite."""

import os
import shutil
import tempfile

import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

# One thread a process, as `make test` has it: sums in another order have other last digits.  torch reads it once.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples in every run, but for constants that Hypothesis takes from whatever modules are imported, and no
# folder of earlier ones: a test that fails here fails everywhere.
settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.load_profile("repeatable")

# One token cache for all runs of the suite, those in other processes too, and not the person's own.
CACHE = pytest.StashKey[str]()

RANKS, FAULTS = ("tests/distributed/", "tests/slurm/"), "tests/faults/"


def pytest_configure(config: pytest.Config) -> None:
    config.stash[CACHE] = os.environ["DESTRUCT_CACHE"] = tempfile.mkdtemp(prefix="destruct-cache-")


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(config.stash[CACHE], ignore_errors=True)


class RanksTogether(LoadFileScheduling):
    """A file's tests stay in one worker, as its fixtures may take minutes; and so do all tests of several ranks, which
    keep all cores busy each, but for the faults: these wait a lot, and a second worker is there for them."""

    def _split_scope(self, nodeid: str) -> str:
        if nodeid.startswith(FAULTS):
            return "faults"
        return "ranks" if nodeid.startswith(RANKS) else super()._split_scope(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> RanksTogether | None:
    return RanksTogether(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of several ranks take longest, so they come first; the faults last, behind all that take seconds."""
    items.sort(key=lambda item: (item.nodeid.startswith(FAULTS), not item.nodeid.startswith(RANKS)))
