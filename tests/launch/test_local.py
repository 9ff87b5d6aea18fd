"""`destruct launch local`: what it starts, refuses, and says; tests/distributed/test_launchers.py has a whole run."""

import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from destruct import launch
from destruct.launching import local
from destruct.launching.surroundings import DEVICES
from tests.distributed.launching import Life, begin, end, run, updates_in, wait_for_updates
from tests.tiny import write_config

SHORT = ("run.num_epochs=1", "run.updates_per_epoch=2", "warmup.lm_updates=1")
LOCAL = [sys.executable, "-m", "destruct.launch", "local"]

KILLED = """
import os, signal

calls = 0

def one(prompts, responses, continuations):
    global calls
    calls += 1
    if calls == 2 and os.environ["RANK"] == "1":
        os.write(2, b"a word before the end")
        os.kill(os.getpid(), signal.SIGKILL)
    return [1.0] * len(responses)
"""
"""A reward whose second call kills its rank."""


@pytest.fixture(scope="module", autouse=True)
def without_gpus() -> Iterator[None]:
    """Also on a machine that has some."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield


@pytest.mark.slow
@pytest.mark.distributed
def test_a_rank_that_is_killed_under_torchrun_is_named_with_what_it_said_last(tmp_path):
    """torchrun's own exit code is 1 whatever happened."""
    (tmp_path / "killed.py").write_text(KILLED)
    words = ["engine.backend=fsdp", 'reward.terms={"killed:one": 1.0}', *SHORT]
    done = run([*LOCAL, "--ranks", "2", "--config", str(write_config(tmp_path)), *words], module_path=tmp_path)
    assert done.returncode == 76
    assert done.stderr.splitlines() == [
        "destruct: rank 1 was killed by SIGKILL, the first to end so",
        "  remedy: read its last lines; SIGKILL often means that memory ran out",
        "  what it printed before it had a log:",
        "  a word before the end",
    ]
    assert "a word before the end" not in done.stdout
    assert "Root Cause" in (tmp_path / "tiny.output" / "launcher.log").read_text(), "torchrun's own story is kept"


def stopped(folder: Path, number: int, *words: str) -> Life:
    """A run that gets a signal after its first update."""
    process = begin([*LOCAL, "--config", str(write_config(folder)), *words, "run.num_epochs=50"])
    wait_for_updates(folder / "tiny", 1, process)
    process.send_signal(number)
    return end(process)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGUSR1, ("--ranks", "2", "engine.backend=fsdp")),
        (signal.SIGTERM, ("engine.backend=single",)),
    ],
    ids=["torchrun", "one process"],
)
def test_a_signal_lets_every_rank_save_and_end_with_75(tmp_path, number, words):
    life = stopped(tmp_path, number, *words)
    assert (life.code, life.left) == (75, []), life.err
    saved = max(tmp_path.glob("tiny/checkpoints/step-*"))
    assert int(saved.name[5:]) == updates_in(tmp_path / "tiny")


@pytest.mark.slow
def test_a_run_of_one_process_that_is_killed_ends_with_76(tmp_path):
    process = begin([*LOCAL, "--config", str(write_config(tmp_path)), "engine.backend=single", "run.num_epochs=50"])
    wait_for_updates(tmp_path / "tiny", 1, process)
    (rank,) = psutil.Process(process.pid).children()
    rank.kill()
    life = end(process)
    assert (life.code, life.left) == (76, [])
    assert life.err.splitlines()[0] == "destruct: rank 0 was killed by SIGKILL"


@pytest.mark.parametrize(
    ("words", "shown", "module"),
    [
        ([], "2 ranks; what they say: {folder}/tiny.output/rank-N.log", "deepspeed.launcher.runner"),
        (["--ranks=4"], "4 ranks; what they say: {folder}/tiny.output/rank-N.log", "deepspeed.launcher.runner"),
        (["engine.backend=fsdp"], "2 ranks; what they say: {folder}/tiny.output/rank-N.log", "torch.distributed.run"),
        (["engine.backend=single"], "1 rank", "destruct.train"),
        (["--launcher=torchrun", "--logs=here"], "2 ranks; what they say: here/rank-N.log", "torch.distributed.run"),
    ],
)
def test_a_dry_run_says_what_would_start_and_starts_nothing(tmp_path, capsys, words, shown, module):
    config = write_config(tmp_path)
    assert launch.main(["local", "--dry-run", "--config", str(config), *words, "run.seed=5"]) == 0
    first, line = capsys.readouterr().out.splitlines()
    assert first == shown.format(folder=tmp_path)
    assert not list(tmp_path.glob("tiny*/")) and not Path("here").exists()
    command = shlex.split(line)
    assert command[command.index("-m") + 1] == module
    overrides = [word for word in words if not word.startswith("--")]
    assert command[command.index("--config") :] == ["--config", str(config), *overrides, "run.seed=5"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--ranks", "0"), "--ranks 0 is not from 1 to 1024"),
        (("--ranks", "3"), "rollout.batch_size=16 does not divide into gradient_accumulation_steps=2"),
        (("--ranks", "2", "--launcher", "python"), "--launcher python starts one rank, not 2"),
        (("engine.backend=single", "--ranks", "2"), "engine.backend=single runs in one process, but 2 ranks"),
        (("kl.coeff=1",), "command line: unknown key 'kl.coeff'"),
        (("--resume", "auto", "run.resume=never"), "--resume auto and run.resume=never differ"),
    ],
)
def test_a_mistake_is_told_in_two_lines_before_anything_starts(tmp_path, capsys, words, problem):
    assert launch.main(["local", "--config", str(write_config(tmp_path)), *words]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"destruct: {problem}") and second.startswith("  remedy: ")
    assert not list(tmp_path.glob("tiny*/"))


def test_more_ranks_than_gpus_are_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(local, "gpus", lambda: 2)
    assert launch.main(["local", "--config", str(write_config(tmp_path)), "--ranks", "4"]) == 2
    assert capsys.readouterr().err.splitlines()[0] == "destruct: --ranks 4 is more than the 2 GPUs here"


def test_the_persons_choice_of_gpus_reaches_the_ranks_under_another_name(tmp_path, capsys, monkeypatch):
    """DeepSpeed's launcher puts 0,1 in its place where it is told how many ranks to start."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert launch.main(["local", "--dry-run", "--config", str(write_config(tmp_path))]) == 0
    assert f"{DEVICES}=2,3" in shlex.split(capsys.readouterr().out)
