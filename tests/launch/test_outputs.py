"""What ranks say, from their files to the terminal, and exit codes that a launcher tells in words alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from destruct.errors import DestructError
from destruct.launching.outputs import Outputs
from destruct.launching.surroundings import DEVICES, gpus
from tests.distributed.launching import environment, run, torchrun
from tests.processes import below, variables

TOY = """
import os, pathlib, signal, sys, time
rank, act = os.environ["RANK"], sys.argv[1]
if act == "flood":
    signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path("heard").touch(), sys.exit(75)))
    for number in range(20_000):
        print(number, "x" * 20)
if act in ("flood", "sleep"):
    pathlib.Path(f"ready-{rank}").touch()
    time.sleep(600)
if rank == "0":
    time.sleep(0.5)  # so that it ends well, but after torchrun has seen the other one
    sys.exit(0)
print("last words", flush=True)
sys.exit(int(act))
"""

SUPERVISED = """
import os, sys
from destruct.exits import leave
from destruct.launching.outputs import Outputs
from destruct.launching.supervisor import Supervisor
leave(Supervisor("destruct", sys.argv[1] == "alone", Outputs("said")).run(sys.argv[2:], os.environ))
"""


def supervised(folder: Path, *launcher: str, act: str, how: str = "ranks") -> list[str]:
    """The command that runs the toy in a folder under a supervisor that shows what it says."""
    (folder / "toy.py").write_text(TOY)
    command = [*launcher, "-m", "destruct.launching.rank", str(folder / "said"), "toy", act]
    return ["env", f"--chdir={folder}", sys.executable, "-c", SUPERVISED, how, *command]


@pytest.mark.distributed
@pytest.mark.parametrize("code", [2, 75, 77])
def test_the_code_of_a_rank_comes_through_torchrun_which_says_1_of_everything(tmp_path, code):
    done = run(supervised(tmp_path, *torchrun(2), act=str(code)), module_path=tmp_path)
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout.splitlines() == ["[rank 1] last words"]


@pytest.mark.distributed
def test_a_code_that_says_nothing_by_itself_is_told_with_the_ranks_last_words(tmp_path):
    done = run(supervised(tmp_path, *torchrun(2), act="5"), module_path=tmp_path)
    assert done.returncode == 5
    assert done.stderr.splitlines() == [
        "destruct: rank 1 ended with 5",
        "  remedy: see what it said",
        "  said/rank-1.log",
        "  last words",
    ]


def begun(folder: Path, command: list[str], ranks: int, stdout: int) -> subprocess.Popen[str]:
    """Start it, and wait until its ranks are where they stay."""
    variables = environment() | {"PYTHONPATH": f"{folder}{os.pathsep}{environment()['PYTHONPATH']}"}
    process = subprocess.Popen(command, env=variables, stdout=stdout, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 180
    while not all((folder / f"ready-{rank}").exists() for rank in range(ranks)):
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.05)
    return process


@pytest.mark.distributed
def test_ranks_of_torchrun_that_a_signal_ends_before_they_listen_are_no_failure(tmp_path):
    process = begun(tmp_path, supervised(tmp_path, *torchrun(2), act="sleep"), 2, subprocess.DEVNULL)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=180)
    assert (process.returncode, said) == (75, "")


@pytest.mark.distributed
def test_a_rank_of_torchrun_that_somebody_else_ends_is_named(tmp_path):
    process = begun(tmp_path, supervised(tmp_path, *torchrun(2), act="sleep"), 2, subprocess.DEVNULL)
    (rank,) = [each for each in below(process.pid) if variables(each).get("RANK") == "1"]
    rank.terminate()
    _, said = process.communicate(timeout=180)
    assert (process.returncode, said.splitlines()[0]) == (
        76,
        "destruct: rank 1 was killed by SIGTERM, the first to end so",
    )


@pytest.mark.slow
def test_a_signal_reaches_the_rank_though_nobody_reads_what_it_says(tmp_path):
    """The pipe takes 64 KiB of some 500."""
    alone = ("env", "RANK=0", sys.executable)
    process = begun(tmp_path, supervised(tmp_path, *alone, act="flood", how="alone"), 1, subprocess.PIPE)
    time.sleep(1)  # the pipe is full
    process.send_signal(signal.SIGTERM)
    until = time.monotonic() + 180
    while not (tmp_path / "heard").exists():
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.05)
    said, _ = process.communicate(timeout=180)
    assert process.returncode == 75
    assert said.splitlines() == [f"[rank 0] {line}" for line in (tmp_path / "said/rank-0.log").read_text().splitlines()]


def test_a_rank_gets_back_what_the_person_wrote_for_cuda(tmp_path):
    (tmp_path / "shows.py").write_text("import os; print(os.environ['CUDA_VISIBLE_DEVICES'])")
    variables = environment() | {
        "RANK": "0",
        "CUDA_VISIBLE_DEVICES": "0,1",
        DEVICES: "2,3",
        "PYTHONPATH": str(tmp_path),
    }
    variables["PYTHONPATH"] += f"{os.pathsep}{environment()['PYTHONPATH']}"
    command = [sys.executable, "-m", "destruct.launching.rank", "--local_rank=0", str(tmp_path / "new"), "shows"]
    subprocess.run(command, env=variables, check=True, timeout=180)
    assert (tmp_path / "new" / "rank-0.log").read_text() == "2,3\n"


class Screen:
    """Takes what is to be written."""

    def __init__(self):
        self.text = ""

    def put(self, text, stream):
        self.text += text

    def new(self) -> str:
        text, self.text = self.text, ""
        return text


def test_what_ranks_say_is_passed_on_line_by_line_and_what_an_earlier_run_said_is_not(tmp_path):
    (tmp_path / "rank-0.log").write_bytes(b"an earlier run\n")
    (tmp_path / "rank-3.log").mkdir()
    outputs, screen = Outputs(str(tmp_path)), Screen()
    with (tmp_path / "rank-0.log").open("ab") as first, (tmp_path / "rank-10.log").open("ab") as last:
        first.write("zwei W\u00f6rter".encode()[:6])
        first.flush()
        outputs.pass_on(screen)
        assert screen.new() == "", "no half line, and no half letter"
        first.write("zwei W\u00f6rter".encode()[6:] + b"\n 10%\r 50%\r100%\r\nno end")
        last.write(b"tenth\n")
    outputs.pass_on(screen)
    assert screen.new() == "[rank 0] zwei W\u00f6rter\n[rank 0] 100%\n[rank 10] tenth\n"
    outputs.pass_on(screen, at_end=True)
    outputs.pass_on(screen, at_end=True)
    assert screen.new() == "[rank 0] no end\n"


def test_the_last_lines_are_those_of_this_life_alone(tmp_path):
    (tmp_path / "rank-0.log").write_text("of before\n")
    outputs = Outputs(str(tmp_path))
    outputs.begin()
    assert outputs.last_lines("rank-0") == (str(tmp_path / "rank-0.log"), [])
    with (tmp_path / "rank-0.log").open("a") as log:
        log.writelines(f"line {number}\n" for number in range(20))
    assert outputs.last_lines("rank-0")[1] == [f"line {number}" for number in range(12, 20)]


def test_a_folder_in_which_another_launcher_writes_is_refused(tmp_path):
    kept = Outputs(str(tmp_path))
    with pytest.raises(DestructError, match="is in use by another launcher") as caught:
        Outputs(kept.folder)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("visible", "counted"),
    [(None, 3), ("", 0), ("2", 1), ("0,2", 2), ("0,-1,1", 1), ("GPU-8f3,GPU-77a", 2), ("MIG-4", 1), ("NoDevFiles", 0)],
)
def test_gpus_are_those_that_cuda_would_see(tmp_path, monkeypatch, visible, counted):
    for number in range(3):
        (tmp_path / f"nvidia{number}").touch()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus(f"{tmp_path}/nvidia[0-9]*") == counted
    assert gpus(f"{tmp_path}/none[0-9]*") == 0
