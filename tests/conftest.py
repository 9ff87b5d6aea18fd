"""Settings of the whole suite."""

import os
import shutil
import tempfile

import pytest
from hypothesis import settings

# The same examples in every run, and no folder of earlier ones: a test that fails here fails everywhere.
settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.load_profile("repeatable")

# One token cache for all runs of the suite, those in other processes too, and not the person's own.
CACHE = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[CACHE] = os.environ["DESTRUCT_CACHE"] = tempfile.mkdtemp(prefix="destruct-cache-")


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(config.stash[CACHE], ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several workers a file's tests stay together, as its fixtures may take minutes; those of several ranks keep
    all cores busy, so they come one after the other, and first, as they take longest."""
    items.sort(key=lambda item: item.get_closest_marker("distributed") is None)
    for item in items:
        ranks = item.get_closest_marker("distributed")
        item.add_marker(pytest.mark.xdist_group("ranks" if ranks else item.nodeid.partition("::")[0]))
