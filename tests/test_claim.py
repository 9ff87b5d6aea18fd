"""One run at a time in a folder: another process is refused, and nothing of the first one's is touched."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from destruct import claim
from destruct.claim import Claim
from destruct.errors import DestructError
from tests.tiny import tiny_run

HOLDER = """
import pathlib, sys, time
from destruct.claim import Claim
mine = Claim()
mine.take(pathlib.Path(sys.argv[1]), print)
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
        started.append(process)
        assert process.stdout.readline() == "mine\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_folder_that_another_process_works_in_is_refused_with_its_number(tmp_path, hold, monkeypatch):
    other, said = hold(tmp_path, 60), []
    monkeypatch.setattr(claim, "PATIENCE_S", 0.5)
    with pytest.raises(DestructError) as caught:
        Claim().take(tmp_path, said.append)
    owner = f"process {other.pid} on {os.uname().nodename}"
    assert caught.value.problem == f"{tmp_path} is in use by {owner}"
    assert caught.value.exit_code == 3
    assert said == [f"{tmp_path} is in use by {owner}: waiting up to 0 s for its end"]


@pytest.mark.parametrize("ended_by", ["itself", "SIGKILL"])
def test_however_the_other_one_ends_its_folder_is_free_then(tmp_path, hold, ended_by):
    other, said = hold(tmp_path, 1.0 if ended_by == "itself" else 60.0), []
    if ended_by == "SIGKILL":
        other.send_signal(signal.SIGKILL)
    begun = time.monotonic()
    mine = Claim()
    mine.take(tmp_path, said.append)
    assert time.monotonic() - begun < 30
    assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} ")
    mine.leave()


def test_what_this_process_starts_or_forks_does_not_keep_the_folder(tmp_path, hold):
    mine = Claim()
    mine.take(tmp_path, print)
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    try:
        mine.leave()
        hold(tmp_path, 0)  # it would wait for the child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_file_system_without_locks_is_told_and_used(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    said = []
    monkeypatch.setattr(claim.fcntl, "lockf", refuse)
    Claim().take(tmp_path, said.append)
    assert said == [f"{tmp_path} cannot be locked (No locks available): let no other run write there"]


@pytest.mark.slow
def test_a_run_beside_another_one_is_refused_before_it_puts_that_ones_folder_aside(tmp_path, hold, monkeypatch):
    with tiny_run(tmp_path):
        pass
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "tiny").rglob("*") if path.name != claim.NAME}
    other = hold(tmp_path / "tiny", 60)
    monkeypatch.setattr(claim, "PATIENCE_S", 0.1)
    for resume in ("never", "auto"):
        with (
            pytest.raises(DestructError, match=f"is in use by process {other.pid}"),
            tiny_run(tmp_path, f"run.resume={resume}"),
        ):
            pass
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "tiny").rglob("*") if path.name != claim.NAME}
    assert after == before and not (tmp_path / "tiny.1").exists()


@pytest.mark.slow
def test_a_run_holds_its_folder_from_its_start_to_its_end(tmp_path, hold):
    for name in ("a new folder", "the same one, put aside"):
        with tiny_run(tmp_path), pytest.raises(AssertionError):  # it is told to wait, and says so
            hold(tmp_path / "tiny", 0)
        assert hold(tmp_path / "tiny", 0).wait(30) == 0, name
