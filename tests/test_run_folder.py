"""A run's folder is its owner's alone; the link ./logs shows all runs, and gives way to what it must."""

import os
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.io_wrapper import GetLogdirSubdirectories

from destruct.run_folder import LINK
from tests.tiny import tiny_run

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(folder: str) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    with tiny_run(Path(folder)) as run:
        run.log("ppo", 0, {"kl/coef": 0.5})


def test_what_a_run_writes_is_for_its_owner_alone_whatever_the_umask(here):
    before = os.umask(0)
    try:
        start("runs")
    finally:
        os.umask(before)
    assert (here / "runs" / "tiny").stat().st_mode & 0o777 == 0o700


def test_tensorboard_finds_every_run_of_a_relative_folder_below_logs(here):
    for folder in ("runs", "runs"):
        start(folder)
    assert os.readlink(LINK) == "runs"
    shown = {str(Path(path).relative_to(LINK)) for path in GetLogdirSubdirectories(str(LINK))}
    assert {"tiny/logs", "tiny.1/logs"} <= shown


@pytest.mark.parametrize("elsewhere", ["other", "missing", "logs"])
def test_a_link_to_elsewhere_is_replaced_and_what_it_led_to_is_left_alone(here, elsewhere):
    (here / "other").mkdir()
    LINK.symlink_to(elsewhere)
    start("runs/deep")
    assert os.readlink(LINK) == "runs/deep"
    assert (here / "other").is_dir()


def test_a_right_link_is_left_as_it_is_however_it_is_written(here):
    LINK.symlink_to(here / "runs")
    start("runs")
    assert os.readlink(LINK) == str(here / "runs")


def say(monkeypatch, capsys, folder: str) -> str:
    """What the first rank prints when a run starts."""
    from destruct.tracking.console import Screen

    monkeypatch.setattr("tests.tiny.Screen", lambda first_rank: Screen(True))
    start(folder)
    return capsys.readouterr().out


def test_an_absolute_link_to_elsewhere_is_the_users_and_left_alone(here, monkeypatch, capsys):
    (here / "scratch").mkdir()
    LINK.symlink_to(here / "scratch")
    assert f"no link from ./logs to runs: a link to {here / 'scratch'} is there\n" in say(monkeypatch, capsys, "runs")
    assert os.readlink(LINK) == str(here / "scratch")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_file_or_folder_in_its_place_is_left_alone_and_told(here, monkeypatch, capsys, kind):
    LINK.touch() if kind == "file" else LINK.mkdir()
    assert "no link from ./logs to runs: a file or folder of that name is there\n" in say(monkeypatch, capsys, "runs")
    assert LINK.is_file() if kind == "file" else not list(LINK.iterdir())


def test_runs_in_a_folder_of_that_very_name_need_no_link(here, monkeypatch, capsys):
    assert "no link" not in say(monkeypatch, capsys, "logs")
    assert LINK.is_dir() and not LINK.is_symlink()


def test_an_absolute_folder_gets_no_link_and_an_older_link_stays(here):
    start(str(here / "absolute"))
    assert not LINK.is_symlink()
    LINK.symlink_to("missing")
    start(str(here / "absolute"))
    assert os.readlink(LINK) == "missing"
