"""What a person sees of a real run: on terminals of several widths, piped, and with --quiet."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.terminal import Seen, in_terminal
from tests.tiny import ROOT, write_config

pytestmark = pytest.mark.slow

SHORT = ["engine.backend=single", "run.num_epochs=1", "run.updates_per_epoch=3"]
NOISY = """
import os, sys, warnings

print("printed when imported")

def f(prompts, responses, continuations):
    os.write(1, b"raw on 1\\n")
    os.write(2, b"raw on 2\\n")
    print("printed", os.environ["A_SECRET"])
    print("complained", file=sys.stderr)
    warnings.warn("warned")
    os.system("echo a child speaks")
    if os.environ.get("BREAK") == "bug":
        raise SystemError("of the reward's own")
    return [0.5] * len(responses)
"""
SAID = ("raw on 1", "raw on 2", "printed <secret>", "complained", "warned", "a child speaks", "printed when imported")


SLOW = """
import time
def f(prompts, responses, continuations):
    time.sleep(1)  # several drawings of the board
    return [0.5] * len(responses)
"""


@pytest.fixture
def noisy(tmp_path) -> Path:
    """A folder with a config, and a reward function that speaks in every way there is."""
    (tmp_path / "noisy.py").write_text(NOISY)
    write_config(tmp_path)
    return tmp_path


def command(folder: Path, *more: str) -> list[str]:
    reward = "reward.terms={'noisy:f': 1.0}" if (folder / "noisy.py").exists() else "run.seed=3"
    config = folder / "tiny.yaml"
    return [sys.executable, "-m", "destruct.train", "--config", str(config), *SHORT, reward, *more]


def variables(folder: Path, **more: str) -> dict[str, str]:
    path = f"{ROOT}{os.pathsep}{folder}"
    return {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "A_SECRET": "a canary of mine"} | more


def piped(folder: Path, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | variables(folder, **environment)
    return subprocess.run(command(folder, *more), env=env, capture_output=True, text=True, timeout=120)


def shown(folder: Path, columns: int, *more: str, **environment: str) -> Seen:
    write_config(folder)
    return in_terminal(command(folder, *more), columns, **variables(folder, **environment))


@pytest.mark.parametrize("columns", [40, 80, 140])
def test_the_board_fits_a_terminal_and_leaves_a_line_for_each_stretch_and_the_tables(tmp_path, columns):
    (tmp_path / "noisy.py").write_text(SLOW)
    seen = shown(tmp_path, columns)
    assert seen.code == 0, seen.plain[-2000:]
    assert seen.screen.widest <= columns
    for words in ("now        ", "reward  ", "KL   ", "validation ", "speed ", "tokens/s", "weights ", "arithmetic"):
        assert words in seen.plain, words
    assert "now        score" in seen.plain
    left = seen.screen.text()
    assert "now        " not in left and "weights  " not in left, "the board goes"
    lines = [line for line in left.splitlines() if line.startswith(("warm-up", "value", "ppo"))]
    assert [line.split("━")[0].strip() for line in lines] == ["warm-up", "value", "ppo"]
    assert [line.split("━")[-1].split()[0] for line in lines] == ["4/4", "1/1", "3/3"]
    assert "validation loss, nats per token" in left and "│ tokens" in left
    assert "\x1b[?25l" not in seen.raw, "a killed run would leave the terminal without a cursor"


def test_piped_it_is_plain_lines_with_validation_and_speed_at_their_end(tmp_path):
    write_config(tmp_path)
    done = piped(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    last = next(line for line in done.stdout.splitlines() if line.startswith("ppo        3/3  "))
    n = r"\d+\.\d+"
    told = re.fullmatch(
        rf"ppo        3/3  reward {n}  KL {n} of 1.0  ptx {n}  entropy {n}  val ({n})  [\d,]+ tok/s(  in 0:\d\d)?", last
    )
    assert told is not None, last
    summary = json.loads((tmp_path / "tiny" / "summary.json").read_text())
    assert told[1] == f"{summary['validation_loss_after']['mean']:.3f}"


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_terminals_without_colours_or_movements_get_none(tmp_path, variable, value):
    seen = shown(tmp_path, 80, **{variable: value})
    assert seen.code == 0, seen.plain[-2000:]
    assert not re.search(r"\x1b\[(\d+;)*(3[0-8]|9[0-7])[;m]", seen.raw), "a colour"
    if variable == "TERM":
        assert "\x1b" not in seen.raw and "ppo        3/3  reward" in seen.plain
    else:
        assert "now        " in seen.plain, "it has a board"


def test_what_anything_prints_is_in_the_ranks_log_and_not_on_the_screen(noisy):
    seen = shown(noisy, 80)
    assert seen.code == 0, seen.plain[-2000:]
    log = (noisy / "tiny" / "logs" / "rank-0.log").read_text()
    for words in SAID:
        assert words not in seen.plain and words in log, words
    assert "a canary of mine" not in log


def test_quiet_is_silent_and_the_log_has_what_would_have_been_said(noisy):
    done = piped(noisy, "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    log = (noisy / "tiny" / "logs" / "rank-0.log").read_text()
    assert "reading and tokenizing the sources" in log and "starting 1 rank(s)" in log
    assert json.loads((noisy / "tiny" / "summary.json").read_text())["updates"] == 3


def test_quiet_says_in_two_lines_what_is_wrong(noisy):
    done = piped(noisy, "--quiet", "data.sources.mine={path: /nowhere.txt}")
    assert (done.returncode, done.stdout) == (2, "")
    problem, remedy = done.stderr.splitlines()
    assert problem.startswith("destruct: source 'mine': ") and remedy.startswith("  remedy: ")


def test_a_traceback_of_a_fault_reaches_the_person_below_the_board(tmp_path):
    """Of a loop that fails in its second update."""
    program = "import destruct.loop as loop\nfrom destruct import train\nreal = loop.optimize\n\n"
    program += "def optimize(run, batches):\n    assert run.state.update == 0, 'a fault of ours'\n"
    program += "    return real(run, batches)\n\nloop.optimize = optimize\ntrain.enter()\n"
    (tmp_path / "faulty.py").write_text(program)
    config = str(write_config(tmp_path))
    line = [sys.executable, str(tmp_path / "faulty.py"), "--config", config, *SHORT]
    seen = in_terminal(line, 80, **variables(tmp_path))
    assert seen.code == 76
    left = seen.screen.text().splitlines()
    assert left[-1] == "AssertionError: a fault of ours" and "Traceback (most recent call last):" in left
    assert "now        " not in seen.screen.text()
    assert "a fault of ours" in (tmp_path / "tiny" / "logs" / "rank-0.log").read_text()


def test_before_there_is_a_log_a_fault_brings_along_what_was_printed(noisy):
    """The trial of a reward function is before the run's folder; KeyError and the like are faults of its own there."""
    program = "from destruct import build, train\n\n"
    program += "def choose(*_):\n    print('printed before')\n    raise RuntimeError('a fault')\n\n"
    program += "build.check_sizes = choose\ntrain.enter()\n"
    (noisy / "faulty.py").write_text(program)
    line = [sys.executable, str(noisy / "faulty.py"), "--config", str(noisy / "tiny.yaml"), *SHORT]
    done = subprocess.run(line, env=os.environ | variables(noisy), capture_output=True, text=True, timeout=120)
    assert done.returncode == 76
    assert done.stderr.splitlines()[-1] == "RuntimeError: a fault" and "printed before\n" in done.stderr
    assert not (noisy / "tiny").exists()
