"""`launch/bin/deepspeed` and ranks that know more of each other than an exit code: who is at fault, and who is gone."""

import os
import platform
import signal
import subprocess
import sys
import time

import pytest

from destruct import last_words
from tests.launch.test_launcher import ROOT, launch, ranks_left, start
from tests.processes import below, words

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

HOLDER = """
import subprocess, sys, time
from destruct.launching.supervisor import hold
hold(sys.argv[1])
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], stdout=subprocess.DEVNULL)  # a rank
print("held", flush=True)
time.sleep(60)
"""


def test_a_run_that_set_itself_back_is_started_again_and_its_second_life_decides(tmp_path):
    done = launch(tmp_path, "--num_gpus", "2", "-m", "toy", "again")
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines().count("deepspeed: the run starts again, from its last checkpoint") == 1
    assert done.stdout.count("rank 0 of 2 got again") == done.stdout.count("rank 1 of 2 got again") == 2


def test_a_rank_that_another_holds_at_fault_is_named_and_killed_though_it_is_stopped(tmp_path):
    done = launch(tmp_path, "--num_gpus", "2", "-m", "toy", "blame")
    assert done.returncode == 76
    assert done.stderr.splitlines()[0] == "deepspeed: rank 1 is late in phase score"
    assert not ranks_left(tmp_path)


def test_where_nobody_is_at_fault_it_is_said_what_is_wrong(tmp_path):
    done = launch(tmp_path, "--num_gpus", "2", "-m", "toy", "nobody")
    assert (done.returncode, done.stderr.splitlines()[0]) == (76, "deepspeed: nothing goes on")


def test_deepspeeds_launcher_that_is_killed_before_it_has_started_a_rank_is_no_success(tmp_path):
    """DeepSpeed itself ends with 0 then."""
    process = start(tmp_path, "--num_gpus", "2", "-m", "toy", "listen")
    victims = []
    while not victims:
        assert process.poll() is None
        victims = [each for each in below(process.pid) if "deepspeed.launcher.launch" in words(each)]
    time.sleep(0.5)  # ours has seen it; its own imports take seconds
    victims[0].kill()
    _, said = process.communicate(timeout=180)
    assert process.returncode == 76
    assert said.splitlines()[0] == "deepspeed: DeepSpeed's launcher was killed before it had started a rank"
    assert not list(tmp_path.glob("pid-*"))


@pytest.fixture
def launcher(tmp_path, monkeypatch):
    """A process that looks after ranks, of which this one is one, and has started another."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "held\n"
    monkeypatch.setenv(last_words.FOLDER, str(tmp_path))
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_a_rank_knows_its_launcher_gone_when_it_was_killed_though_nobody_has_reaped_it_yet(launcher):
    assert not last_words.launcher_is_gone()
    launcher.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, launcher.pid, os.WEXITED | os.WNOWAIT)
    assert last_words.launcher_is_gone()


def test_a_stopped_launcher_is_not_gone_and_one_of_another_machine_is_not_seen(launcher, tmp_path):
    launcher.send_signal(signal.SIGSTOP)
    assert not last_words.launcher_is_gone()
    launcher.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, launcher.pid, os.WEXITED | os.WNOWAIT)
    (tmp_path / "node").write_text(f"not-{platform.node()}")
    assert not last_words.launcher_is_gone()
    (tmp_path / "node").unlink()
    assert not last_words.launcher_is_gone()


def test_without_our_launcher_there_is_none_to_be_gone(monkeypatch):
    monkeypatch.delenv(last_words.FOLDER, raising=False)
    assert not last_words.launcher_is_gone()
