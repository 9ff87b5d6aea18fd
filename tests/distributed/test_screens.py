"""Two ranks and one screen: the first speaks, both write logs, and what anything prints is in these."""

import sys
from pathlib import Path

import pytest

from tests.distributed.launching import environment, run, torchrun
from tests.terminal import in_terminal
from tests.test_screen_of_a_run import NOISY, SAID
from tests.tiny import write_config

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

SHORT = ["run.num_epochs=1", "run.updates_per_epoch=2", "reward.terms={'noisy:f': 1.0}"]
DEEPSPEED = ["deepspeed", "--num_gpus", "2", "-m", "destruct.train"]
LOCAL = [sys.executable, "-m", "destruct.launch", "local", "--ranks", "2"]


@pytest.fixture
def noisy(tmp_path, monkeypatch) -> Path:
    """A folder with a config, and a reward function that speaks in every way there is."""
    (tmp_path / "noisy.py").write_text(NOISY)
    write_config(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("A_SECRET", "a canary of mine")
    return tmp_path


def words(folder: Path, *more: str) -> list[str]:
    return ["--config", str(folder / "tiny.yaml"), *SHORT, *more]


def logs(folder: Path) -> list[str]:
    return [(folder / "tiny" / "logs" / f"rank-{rank}.log").read_text() for rank in range(2)]


def test_in_a_terminal_one_rank_has_a_board_and_nothing_else_is_seen(noisy):
    seen = in_terminal([*DEEPSPEED, *words(noisy)], 80, **environment())
    assert seen.code == 0, seen.plain[-3000:]
    left = seen.screen.text().splitlines()
    assert left[0] == "reading and tokenizing the sources"
    assert [line.split()[0] for line in left if line.startswith(("warm-up", "value", "ppo"))] == [
        "warm-up",
        "value",
        "ppo",
    ]
    assert "now        " in seen.plain and "now        " not in seen.screen.text()
    for log in logs(noisy):
        for each in SAID:
            assert each in log and each not in seen.plain, each
        assert "a canary of mine" not in log
    assert "starting 2 rank(s)" in logs(noisy)[0] and "starting 2 rank(s)" not in logs(noisy)[1]


@pytest.mark.parametrize("command", [DEEPSPEED, torchrun(2, "-m", "destruct.train")], ids=["deepspeed", "torchrun"])
def test_piped_only_the_first_ranks_lines_come(noisy, command):
    backend = [] if command is DEEPSPEED else ["engine.backend=fsdp"]
    done = run([*command, *words(noisy, *backend)], module_path=noisy)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not [each for each in SAID if each in done.stdout + done.stderr]
    assert done.stdout.count("ppo        2/2  ") == 1
    assert all(each in log for log in logs(noisy) for each in SAID)
    assert "Setting OMP" not in done.stderr and not done.stderr, done.stderr


def test_quiet_goes_through_the_launcher_to_all_ranks(noisy):
    done = run([*LOCAL, *words(noisy, "--quiet")], module_path=noisy)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "starting 2 rank(s)" in logs(noisy)[0]
    assert (noisy / "tiny" / "summary.json").is_file()
    assert (noisy / "tiny.output" / "rank-1.log").read_text() == ""


def test_a_rank_that_dies_before_it_has_a_log_is_shown_with_what_was_printed(noisy):
    """The launcher finds what no log had taken yet: here the last words of C++ before abort()."""
    (noisy / "noisy.py").write_text("import os\nos.write(2, b'last words of a library\\n')\nos.abort()\n")
    done = run([*DEEPSPEED, *words(noisy)], module_path=noisy)
    assert done.returncode == 76
    assert "was killed by SIGABRT" in done.stderr and "  last words of a library\n" in done.stderr
    assert "  what it printed before it had a log:\n" in done.stderr
    assert not (noisy / "tiny").exists()
