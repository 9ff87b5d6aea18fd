"""A run that these tests export from; whoever changes one copies it."""

import shutil
from pathlib import Path

import pytest

from tests.test_export import trained


@pytest.fixture(scope="session")
def rounded(tmp_path_factory) -> dict:
    """A run in bfloat16."""
    return trained(tmp_path_factory.mktemp("rounded"))


@pytest.fixture
def run(rounded, tmp_path) -> Path:
    """A copy of its folder."""
    return Path(shutil.copytree(rounded["run"], tmp_path / "run"))
