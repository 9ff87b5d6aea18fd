"""The command in a process of its own: what it imports before it speaks, and Ctrl-C."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import write_config

ROOT = Path(__file__).resolve().parents[1]
LOCAL = ROOT / "configs" / "local.yaml"
LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")


def start(folder: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """Run the module in a process of its own: the process, and the modules it imported."""
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHER}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "destruct.train", *arguments],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=180,
    )
    marked = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    done.stderr = "".join(line + "\n" for line in done.stderr.splitlines() if line not in marked)
    return done, {line.rpartition("|")[2].strip() for line in marked}


HEAVY = {"torch", "deepspeed", "transformers", "datasets", "numpy"}


def test_help_answers_without_importing_torch(tmp_path):
    done, modules = start(tmp_path, "--help")
    assert done.returncode == 0 and "key.sub=value" in done.stdout and not done.stderr
    assert "destruct.config.settings" in modules and not modules & HEAVY


def test_an_unknown_key_is_answered_without_importing_torch(tmp_path):
    done, modules = start(tmp_path, "--config", str(LOCAL), "kl.coeff=0.1")
    assert done.returncode == 2 and not done.stdout
    assert done.stderr == "destruct: command line: unknown key 'kl.coeff'\n  remedy: did you mean 'kl.coef'?\n"
    assert "destruct.config.settings" in modules and not modules & HEAVY
    assert not list(tmp_path.iterdir())


def test_a_rank_that_ends_in_words_tells_the_launcher_before_the_others_fail_for_want_of_it(tmp_path, monkeypatch):
    """Or one of these is named as the first to fail, with its code."""
    (tmp_path / "reports").mkdir()
    monkeypatch.setenv("DESTRUCT_REPORTS", str(tmp_path / "reports"))
    done, _ = start(tmp_path, "--config", str(LOCAL), "kl.coeff=0.1")
    assert done.returncode == 2
    assert [path.name for path in (tmp_path / "reports").iterdir()] == ["failed-0"]


IMPORTING = """
import runpy, signal, sys

class Interrupted:
    def find_spec(self, name, path=None, target=None):
        try:
            name == "torch" and signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("cannot load module more than once per process") from None

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupted())
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__")
"""


def test_a_ctrl_c_of_which_torch_makes_an_error_of_its_own_is_one_line_still(tmp_path):
    """It comes while torch is imported."""
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHER}
    done = subprocess.run(
        [sys.executable, "-c", IMPORTING, "destruct.train", "--config", str(write_config(tmp_path))],
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "destruct: interrupted\n")


@pytest.mark.slow
def test_control_c_ends_a_run_with_one_line_and_what_it_did_is_saved(tmp_path):
    command = [sys.executable, "-m", "destruct.train", "--config", str(write_config(tmp_path))]
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHER}
    process = subprocess.Popen(
        [*command, "engine.backend=single", "warmup.lm_updates=5000"],
        env=environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job ignores the signal, and its children would too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        while "warm-up" not in process.stdout.readline():
            assert process.poll() is None, process.stderr.read()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=180)
    finally:
        process.kill()
    steps = (tmp_path / "tiny" / "metrics.jsonl").read_text().count("warmup/lm_loss")
    saved = tmp_path / "tiny" / "checkpoints" / f"warmup-{steps:08d}"
    assert process.returncode == 75 and steps > 0
    assert said == f"destruct: stopped by SIGINT: {saved} is saved, and --resume auto goes on from there\n"
    assert (saved / "manifest.json").is_file()
