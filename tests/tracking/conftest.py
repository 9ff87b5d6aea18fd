"""A person without an account at W&B, and a run's folder."""

import os

import pytest


@pytest.fixture
def nobody(monkeypatch, tmp_path):
    """A person without a key and without settings of W&B."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run/logs").mkdir(parents=True)
    return tmp_path / "run"
