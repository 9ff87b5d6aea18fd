"""A run that a launcher or Slurm starts again goes on from its own last checkpoint, whatever it was told."""

import shutil
from pathlib import Path

import pytest

from destruct.last_words import STARTED_AGAIN
from destruct.loop import train
from tests.tiny import tiny_run

pytestmark = pytest.mark.slow

SHORT = ["run.num_epochs=1", "run.updates_per_epoch=1", "warmup.lm_updates=1", "run.checkpoint_every=1"]
JOB = "SLURM_JOB_ID"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with `older`, a run of one update, and `tiny`, which job 7 has made, of two."""
    folder = tmp_path_factory.mktemp("again")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(STARTED_AGAIN, raising=False)
        patch.setenv(JOB, "7")
        for name, updates in (("older", 1), ("tiny", 2)):
            with tiny_run(folder, *SHORT, f"run.name={name}", f"run.updates_per_epoch={updates}") as run:
                train(run)
    return folder


@pytest.fixture
def home(made, tmp_path) -> Path:
    """A copy of it."""
    return shutil.copytree(made, tmp_path / "home")


def update_at_start(home: Path, asked: str, name: str = "tiny") -> int:
    """Updates that lie behind a run of that name when it starts."""
    resume = {"elsewhere": home / "older"}.get(asked, asked)
    with tiny_run(home, *SHORT, f"run.name={name}", f"run.resume={resume}") as run:
        return run.state.update


@pytest.mark.parametrize("asked", ["never", "auto", "elsewhere"])
@pytest.mark.parametrize("again", ["1", "7"])
def test_a_later_life_goes_on_from_the_runs_own_last_checkpoint(home, monkeypatch, again, asked):
    monkeypatch.setenv(STARTED_AGAIN, again)
    monkeypatch.setenv(JOB, "7")
    assert update_at_start(home, asked) == 2


def test_the_third_job_of_a_chain_goes_on_from_what_the_second_one_made_of_the_first_ones_folder(home, monkeypatch):
    """All are told the number of the first one, 7, which stays that of the folder."""
    for job in ("8", "9"):
        monkeypatch.setenv(STARTED_AGAIN, "7")
        monkeypatch.setenv(JOB, job)
        assert update_at_start(home, "never") == 2


@pytest.mark.parametrize(("asked", "update"), [("never", 0), ("auto", 2), ("elsewhere", 1)])
def test_where_the_first_life_did_not_come_so_far_the_second_one_starts_as_the_first_was_told(
    home, monkeypatch, asked, update
):
    """The folder is still that of job 7, so that its checkpoints are no way on for job 8."""
    monkeypatch.setenv(STARTED_AGAIN, "8")
    monkeypatch.setenv(JOB, "8")
    assert update_at_start(home, asked) == update


@pytest.mark.parametrize(("asked", "update"), [("never", 0), ("auto", 0), ("elsewhere", 1)])
@pytest.mark.parametrize("again", ["1", "9"])
def test_where_nothing_was_saved_yet_it_starts_as_it_was_told(home, monkeypatch, again, asked, update):
    monkeypatch.setenv(STARTED_AGAIN, again)
    monkeypatch.setenv(JOB, "9")
    assert update_at_start(home, asked, name="new") == update
