"""`destruct verify_resume` on one rank: real lives, among them one with a memory that no checkpoint holds; refusals."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from destruct.verify_resume import main
from tests.distributed.launching import environment, run
from tests.test_doors import go
from tests.tiny import write_config

ALONE = ["--", sys.executable]


def verify(folder: Path, *arguments: str, module_path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The door as a process, on the tiny run in one process."""
    command = [sys.executable, "-m", "destruct.verify_resume", "--config", str(write_config(folder))]
    return run([*command, "engine.backend=single", *arguments, *ALONE], module_path=module_path)


@pytest.mark.slow
def test_two_equal_lives_are_told_by_part_and_leave_nothing_behind(tmp_path):
    done = verify(tmp_path, "--updates", "3", "--after", "1")
    assert done.returncode == 0, done.stderr[-4000:]
    heading, *rows, verdict = done.stdout.splitlines()
    assert heading.split() == ["part", "tensors", "other", "entries"]
    # 20 weights of the policy and 13 of the value network, three tensors of Adam for each, and the frozen copy's 20.
    assert verdict == "resume is exact: 3 updates = 1 + resume + 2, 152 tensors compared"
    assert all(row.endswith("equal") for row in rows) and len(rows) == 12
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


@pytest.mark.slow
def test_a_reward_that_remembers_its_calls_makes_another_life_which_is_named_and_kept(tmp_path):
    """Its numbers depend on how long the process has lived, which no checkpoint holds."""
    (tmp_path / "moody.py").write_text(
        "calls = []\n"
        "def f(prompts, responses, continuations):\n"
        "    calls.append(1)\n"
        "    return [0.01 * len(calls) * (len(response) % 3) for response in responses]\n"
    )
    changes = ["--updates", "2", "--after", "1", "reward.terms={'moody:f': 1.0}"]
    done = verify(tmp_path, *changes, "--json", module_path=tmp_path)
    assert done.returncode == 77, done.stderr[-4000:]
    told = json.loads(done.stdout)
    assert (told["exact"], told["updates"], told["after"]) == (False, 2, 1)
    kept = Path(told["kept"])
    assert kept.parent == tmp_path and kept.stat().st_mode & 0o777 == 0o700
    names = {difference["name"] for difference in told["differences"]}
    assert told["differences"][0]["part"] == "policy master weights"
    assert {"metrics.jsonl: update 2.rollout/reward", "state.json: rewards[1][0][0]"} <= names
    assert not [name for name in names if name.startswith(("state.json: rewards[0]", "state.json: mixture.cursors"))]
    figures = [
        [json.loads(line) for line in (kept / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "resumed")
    ]
    rewards = [[line["rollout/reward"] for line in lines if "rollout/reward" in line] for lines in figures]
    assert len(rewards[0]) == 2 and len(rewards[1]) == 1 and rewards[0][1] != rewards[1][0]


@pytest.mark.slow
def test_a_run_that_fails_is_quoted_and_gives_its_exit_code(tmp_path):
    done = verify(tmp_path, "rollout.batch_size=17")
    assert done.returncode == 2 and not done.stdout
    said = done.stderr.splitlines()
    assert said[1].startswith("destruct: rollout.batch_size=17 does not divide")
    (kept,) = tmp_path.glob("verify-resume-*")
    assert said[-2].startswith("destruct: the run whole ended with 2; ") and str(kept / "whole.log") in said[-2]
    assert said[-1].endswith(f"delete {kept}")


@pytest.mark.parametrize(
    ("script", "code", "problem"),
    [
        ("exit 0", 2, "the run whole ended without a checkpoint after update 4; it has saved nothing"),
        ("echo no room; exit 3", 3, "the run whole ended with 3; "),
        ("exit 1", 76, "the run whole ended with 1; "),
        ("kill -9 $$", 76, "the run whole ended with -9; "),
    ],
)
def test_how_a_launcher_ends_without_a_checkpoint_is_told(tmp_path, capfd, script, code, problem):
    config = str(write_config(tmp_path))
    assert main(["--config", config, "--", "sh", "-c", script]) == code
    out, err = capfd.readouterr()
    assert not out and err.splitlines()[-2].startswith(f"destruct: {problem}")
    assert ("no room" in err.splitlines()) == ("no room" in script)
    (kept,) = tmp_path.glob("verify-resume-*")
    assert (kept / "whole.log").is_file() and err.splitlines()[-1].endswith(f"delete {kept}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_goes_to_the_launcher_alone_which_ends_its_ranks(tmp_path, number):
    """Its exit code is then that of ranks which saved."""
    waiting = "trap 'exit 75' TERM INT USR1 HUP; : > started; while :; do sleep 0.05; done"
    command = [sys.executable, "-m", "destruct.verify_resume", "--config", str(write_config(tmp_path))]
    door = subprocess.Popen([*command, "--", "sh", "-c", waiting], cwd=tmp_path, env=environment())
    until = time.monotonic() + 30
    while not (tmp_path / "started").exists():
        assert time.monotonic() < until and door.poll() is None
        time.sleep(0.02)
    (launcher,) = psutil.Process(door.pid).children()
    door.send_signal(number)
    assert door.wait(30) == 75 and not launcher.is_running()


@pytest.mark.parametrize(
    ("arguments", "code", "problem", "remedy"),
    [
        (["--after", "4"], 2, "--after 4 of --updates 4 leaves no update", "let k be at least 1"),
        (["--after", "0"], 2, "--after 0 of --updates 4 leaves no update", "let k be at least 1"),
        (["run.resume=auto"], 2, "verify_resume sets run.resume itself", "leave it out"),
        (["ppo.epoch=1"], 2, "unknown key 'ppo.epoch'", "did you mean 'ppo.epochs'?"),
        (["--", "no-such-launcher", "-n", "2"], 3, "'no-such-launcher' is not on PATH", "source launch/env.sh"),
    ],
)
def test_what_cannot_be_verified_is_told_before_anything_starts(tmp_path, capsys, arguments, code, problem, remedy):
    assert main(["--config", str(write_config(tmp_path)), *arguments]) == code
    out, err = capsys.readouterr()
    assert not out and problem in err.splitlines()[0] and remedy in err.splitlines()[1] and len(err.splitlines()) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


def test_help_says_what_is_cut_and_imports_no_torch(tmp_path):
    done, modules = go(tmp_path, "verify_resume", "--help")
    assert done.returncode == 0 and "warmup.lm_updates to 2" in done.stdout and "-- LAUNCHER" in done.stdout
    assert "torch" not in modules
