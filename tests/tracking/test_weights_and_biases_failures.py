"""What fails at Weights & Biases, or on the way there, costs a run nothing."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from destruct.tracking import weights_and_biases as sink
from tests.tracking.wandb_files import curves
from tests.tracking.wandb_lives import KEY, a_life, opened

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("nobody")]


def test_a_server_that_is_not_there_leaves_a_run_offline(folder, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "3")
    said: list[str] = []
    with socket.socket() as refusing:  # it does not listen, and nobody else can
        refusing.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{refusing.getsockname()[1]}")
        tracking = opened(folder, said, mode="online")
        tracking.scalars("ppo", 0, {"kl/coef": 0.5})
        tracking.close()
    assert curves(folder, "update") == {"kl/coef": [(0, 0.5)]}
    assert "does not take this run" in said[0] and said[0].endswith("so it is written offline")
    assert said[1].startswith("W&B: offline; `wandb sync ")


def test_a_server_that_never_answers_holds_nothing_up(folder, monkeypatch, caplog):
    """A thousand rows take no longer than their JSON; at the end the patience runs out, and what is lost is told."""
    monkeypatch.setattr(sink, "PATIENCE_S", 2.0)
    said: list[str] = []
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(50)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        tracking = opened(folder, said, mode="online")
        begun = time.monotonic()
        for step in range(1000):
            tracking.scalars("ppo", step, {f"rollout/reward/{name}": 0.1 for name in range(100)})
        assert time.monotonic() - begun < 2
        begun = time.monotonic()
        with caplog.at_level(logging.WARNING):
            tracking.close()
        assert time.monotonic() - begun < 4
    assert "it has not taken everything 2 s after the end" in said[-1]
    assert "messages; metrics.jsonl lacks nothing" in caplog.text


def test_an_uploader_that_dies_costs_no_more_than_what_it_would_have_shown(folder, caplog):
    said: list[str] = []
    tracking = opened(folder, said)
    tracking.scalars("ppo", 0, {"kl/coef": 0.5})
    os.killpg(tracking._child.pid, signal.SIGKILL)
    tracking._child.wait()
    with caplog.at_level(logging.WARNING):
        for step in range(1, 4):
            tracking.scalars("ppo", step, {"kl/coef": 0.5})
        tracking.close()
    (line,) = [line for line in said if "gets no more" in line]
    assert "logs/wandb.log" in line
    assert "W&B lacks" in caplog.text


def test_more_than_may_wait_is_lost_and_told_once(folder, monkeypatch, caplog):
    """The pipe holds 64 KiB, and the uploader is stopped."""
    monkeypatch.setattr(sink, "MOST_WAITING", 2**16)
    said: list[str] = []
    tracking = opened(folder, said)
    os.killpg(tracking._child.pid, signal.SIGSTOP)
    for step in range(1000):
        tracking.scalars("ppo", step, {f"rollout/reward/{name}": 0.1 for name in range(100)})
    os.killpg(tracking._child.pid, signal.SIGCONT)
    with caplog.at_level(logging.WARNING):
        tracking.close()
    assert len([line for line in said if "takes nothing any more" in line]) == 1
    steps = [step for step, _ in curves(folder, "update")["rollout/reward/0"]]
    assert steps == list(range(len(steps))) and 10 < len(steps) < 1000, "what came before the first loss"
    assert f"W&B lacks at least {1000 - len(steps)} messages" in caplog.text


def test_a_run_whose_rank_was_killed_lacks_nothing_after_the_next_life(folder):
    """The uploader sees its end, and hands over what it was given; what it was not is given again."""
    code = "import sys, os, signal; from pathlib import Path; from tests.tracking import wandb_lives as t\n"
    code += "w = t.a_life(Path(sys.argv[1]), [], range(3), 1.0)\n"
    code += "while w._waiting: w._exchange()\n"
    code += "os.kill(os.getpid(), signal.SIGKILL)"
    done = subprocess.run([sys.executable, "-c", code, str(folder)], timeout=120)
    assert done.returncode == -signal.SIGKILL
    until = time.monotonic() + 60
    while time.monotonic() < until and kept(folder).get("rows") != 3:
        time.sleep(0.2)
    a_life(folder, [], range(1, 5), 2.0).close()
    steps = [step for step, _ in curves(folder, "update")["ppo/steps"]]
    assert steps == list(range(5))


def kept(folder: Path) -> dict:
    path = folder / "wandb.json"
    return json.loads(path.read_text()) if path.exists() else {}


def test_nothing_is_left_running(folder):
    tracking = opened(folder, [])
    child = tracking._child
    tracking.close()
    assert child.returncode is not None
    until = time.monotonic() + 20
    while time.monotonic() < until and (left := cores(folder)):
        time.sleep(0.2)
    assert not left


def cores(folder: Path) -> list[str]:
    """Processes that work in the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            opened_files = [os.readlink(link) for link in (process / "fd").iterdir()]
        except OSError:
            continue
        found += [
            process.name for path in opened_files if path.startswith(str(folder)) and process.name != str(os.getpid())
        ]
    return found
