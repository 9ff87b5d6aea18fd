"""One run at a time in a folder: another process is refused, and nothing of the first one's is touched."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from destruct import claim
from destruct.claim import Claim
from destruct.errors import DestructError
from destruct.inputs import read_inputs
from tests.tiny import tiny_run

HOLDER = """
import pathlib, sys, time
from destruct.claim import Claim
mine = Claim(pathlib.Path(sys.argv[1]))
mine.take(print)
print("mine", flush=True)
time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def hold():
    """Start another process that claims a folder."""
    started = []

    def start(folder, seconds: float) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(folder), str(seconds)], stdout=subprocess.PIPE, text=True
        )
        said = process.stdout.readline()
        if said != "mine\n":
            end(process)  # it would wait, and have the folder for a moment as soon as it is free
            raise AssertionError(said)
        started.append(process)
        return process

    def end(process: subprocess.Popen) -> None:
        process.kill()
        process.communicate()

    yield start
    for process in started:
        end(process)


def test_a_folder_that_another_process_works_in_is_refused_with_its_number(tmp_path, hold):
    other, said, folder = hold(tmp_path / "run", 60), [], tmp_path / "run"
    with pytest.raises(DestructError) as caught:
        Claim(folder).take(said.append, patience_s=1.0)
    owner = f"process {other.pid} on {os.uname().nodename}"
    assert caught.value.problem == f"{folder} is in use by {owner}"
    assert str(tmp_path / ".run.lock") in caught.value.remedy and caught.value.exit_code == 3
    assert said == [f"{folder} is in use by {owner}: waiting up to 1 s for its end"]


@pytest.mark.parametrize("ended_by", ["itself", "SIGKILL"])
def test_however_the_other_one_ends_its_folder_is_free_then(tmp_path, hold, ended_by):
    other = hold(tmp_path / "run", 1.0 if ended_by == "itself" else 60.0)
    if ended_by == "SIGKILL":
        other.send_signal(signal.SIGKILL)
    begun, mine = time.monotonic(), Claim(tmp_path / "run")
    mine.take(print)
    assert time.monotonic() - begun < 30
    assert (tmp_path / ".run.lock").read_text() == f"process {os.getpid()} on {os.uname().nodename}"
    mine.leave()


def test_what_is_forked_from_here_does_not_keep_the_folder(tmp_path, hold):
    mine = Claim(tmp_path / "run")
    mine.take(print)
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    try:
        mine.leave()
        hold(tmp_path / "run", 0)  # it would have to wait for the child, and say so
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_file_system_without_locks_is_told_and_used(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    said, lock = [], tmp_path / ".run.lock"
    monkeypatch.setattr(claim.fcntl, "lockf", refuse)
    Claim(tmp_path / "run").take(said.append)
    assert said == [f"{lock} cannot be locked (No locks available): let no other run write to {tmp_path / 'run'}"]


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.slow
@pytest.mark.parametrize("resume", ["never", "auto"])
def test_a_run_beside_another_one_is_refused_before_it_touches_that_ones_folder(tmp_path, hold, monkeypatch, resume):
    with tiny_run(tmp_path):
        pass
    before, other = files(tmp_path / "tiny"), hold(tmp_path / "tiny", 60)
    monkeypatch.setattr(claim, "PATIENCE_S", 0.1)
    with (
        pytest.raises(DestructError, match=f"is in use by process {other.pid}"),
        tiny_run(tmp_path, f"run.resume={resume}"),
    ):
        pass
    assert files(tmp_path / "tiny") == before and not (tmp_path / "tiny.1").exists()


@pytest.mark.slow
def test_of_two_runs_that_find_no_folder_the_later_one_is_refused(tmp_path, hold, monkeypatch):
    """It looked for a checkpoint before there was anything to lock."""
    runs, others = tmp_path / "runs", []

    def read_and_meanwhile(*inputs):
        runs.mkdir()
        others.append(hold(runs / "tiny", 60))
        return read_inputs(*inputs)

    monkeypatch.setattr("destruct.build.read_inputs", read_and_meanwhile)
    with pytest.raises(DestructError, match="is in use by process"), tiny_run(tmp_path, f"run.folder={runs}"):
        pass
    assert others and not (runs / "tiny").exists()


@pytest.mark.slow
def test_a_run_holds_its_folder_from_its_start_to_its_end_though_it_puts_one_aside(tmp_path, hold):
    for number in range(2):
        with tiny_run(tmp_path), pytest.raises(AssertionError, match="is in use by process"):
            hold(tmp_path / "tiny", 0)
        assert hold(tmp_path / "tiny", 0).wait(30) == 0
        assert (tmp_path / "tiny.1").exists() == bool(number)
