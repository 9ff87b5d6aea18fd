"""`launch/bin/deepspeed`, on the real launcher of the interpreter that runs these tests."""

import os
import platform
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from destruct.launching.ranks import Ranks
from tests.processes import at, below, runs, variables, words

ROOT = Path(__file__).resolve().parents[2]
WRAPPER = ROOT / "launch" / "bin" / "deepspeed"
OURS = runpy.run_path(str(WRAPPER))

TOY = """
import ctypes, os, pathlib, signal, sys, threading, time

rank = os.environ["RANK"]
arguments = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")]
said = " ".join(["rank", rank, "of", os.environ["WORLD_SIZE"], "got", *arguments])
os.write(1, f"{said}\\n".encode())  # in one piece: the launcher runs Python unbuffered, and two ranks share the pipe
pathlib.Path(f"pid-{rank}").write_text(str(os.getpid()))
while not (pathlib.Path("pid-0").exists() and pathlib.Path("pid-1").exists()):
    time.sleep(0.01)
act = arguments[0]
if act == "refuse":
    sys.exit(2)
if rank == "1" and act == "exit5":
    sys.exit(5)
if rank == "1" and act == "die":
    time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)
if act == "listen":
    heard = []
    def listens(received, _):  # the launcher may end it by SIGTERM on its way out
        heard.append(received)
        pathlib.Path(f"got-{rank}").write_text(str(heard[0]))
        os._exit(75)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, listens)
if act == "linger":
    def ends(received, _):  # the process is a zombie for a second, until its other thread ends, too
        pathlib.Path(f"got-{rank}").write_text(str(received))
        threading.Thread(target=lambda: (time.sleep(1), os._exit(75))).start()
        ctypes.CDLL(None).syscall(60, 0)  # exit, of this thread alone
    signal.signal(signal.SIGTERM, ends)
if act == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if act == "raise":
    reports = pathlib.Path(os.environ["DESTRUCT_REPORTS"])
    pathlib.Path(f"log-{rank}").write_text("".join(f"line {n} of {rank}\\n" for n in range(20)))
    (reports / f"rank-{rank}").symlink_to(pathlib.Path(f"log-{rank}").absolute())
    if rank == "0":
        while not (reports / "failed-1").exists():
            time.sleep(0.01)
        sys.exit(76)
    (reports / "failed-1").touch()
    time.sleep(1)  # the other one ends first, for want of this one
    sys.exit(76)
if act == "again" and "DESTRUCT_AGAIN" not in os.environ:
    (pathlib.Path(os.environ["DESTRUCT_REPORTS"]) / "again").touch()
    sys.exit(76)
if act == "blame" and rank == "0":
    (pathlib.Path(os.environ["DESTRUCT_REPORTS"]) / "blamed-1").write_text("is late in phase score")
    sys.exit(76)
if act == "nobody":
    (pathlib.Path(os.environ["DESTRUCT_REPORTS"]) / "blamed-nobody").write_text("nothing goes on")
    sys.exit(76)
if act == "blame":
    os.kill(os.getpid(), signal.SIGSTOP)
pathlib.Path(f"ready-{rank}").touch()
if act in ("exit5", "die", "listen", "linger", "deaf"):
    time.sleep(600)
"""


def start(folder: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    """Start launch/bin/deepspeed in a folder that holds the module `toy`, as after `source launch/env.sh`."""
    (folder / "toy.py").write_text(TOY)
    path = os.pathsep.join((str(WRAPPER.parent), str(Path(sys.executable).parent), os.environ["PATH"]))
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", **variables}
    outputs = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}

    def as_on_a_terminal() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, and stays so

    return subprocess.Popen(
        ["deepspeed", *arguments], cwd=folder, env=environment, preexec_fn=as_on_a_terminal, **outputs
    )


def launch(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    process = start(folder, *arguments)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def ready(folder: Path, process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Wait until both ranks are where they stay; returns all processes below the launcher."""
    until = time.monotonic() + 180
    while not all((folder / f"ready-{rank}").exists() for rank in range(2)):
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.05)
    return below(process.pid)


def ranks_left(folder: Path) -> list[int]:
    """Ranks of the toy that still run (a zombie does not), by the process ids they wrote."""
    pids = [int(path.read_text()) for path in folder.glob("pid-*")]
    assert len(pids) == 2, "both ranks started"
    return [pid for pid in pids if at(pid) is not None]


@pytest.mark.distributed
def test_dash_m_starts_two_ranks_and_leaves_the_modules_arguments_alone(tmp_path):
    done = launch(tmp_path, "--num_gpus", "2", "-m", "toy", "a", "-m", "b")
    assert done.returncode == 0, done.stderr
    ranks = sorted(line for line in done.stdout.splitlines() if line.startswith("rank"))
    assert ranks == ["rank 0 of 2 got a -m b", "rank 1 of 2 got a -m b"]
    assert not ranks_left(tmp_path)


@pytest.mark.distributed
def test_ranks_that_exit_2_give_2_and_the_launcher_adds_nothing_after_their_words(tmp_path):
    done = launch(tmp_path, "--num_gpus", "2", "-m", "toy", "refuse")
    assert done.returncode == 2
    assert done.stdout.splitlines()[-1].startswith("rank")
    assert "Traceback" not in done.stdout + done.stderr
    assert not ranks_left(tmp_path)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("act", "code", "words"),
    [("exit5", 5, ""), ("die", 76, "rank 1 was killed by SIGKILL, the first to end so")],
)
def test_a_rank_that_fails_ends_the_other_within_seconds(tmp_path, act, code, words):
    """The other rank would sleep for ten minutes."""
    start = time.monotonic()
    done = launch(tmp_path, "--num_gpus", "2", "--module", "toy", act)
    assert (done.returncode, words in done.stderr) == (code, True)
    assert time.monotonic() - start < 300
    assert not ranks_left(tmp_path)


def left(family: list[psutil.Process]) -> list[psutil.Process]:
    return [each for each in family if runs(each)]


@pytest.mark.distributed
@pytest.mark.parametrize(("number", "got"), [(signal.SIGHUP, signal.SIGTERM), (signal.SIGUSR1, signal.SIGUSR1)])
def test_a_signal_reaches_every_rank_and_no_launcher_and_they_end_with_75(tmp_path, number, got):
    """DeepSpeed's own launchers would die of it, and leave the ranks alone; a closed terminal is a SIGTERM."""
    process = start(tmp_path, "--num_gpus", "2", "-m", "toy", "listen")
    family = ready(tmp_path, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=180)
    assert (process.returncode, err) == (75, "")
    assert [(tmp_path / f"got-{rank}").read_text() for rank in range(2)] == [str(int(got))] * 2
    assert len(family) >= 4 and not left(family)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("victim", "act"),
    [
        ("deepspeed.launcher.launch", "listen"),
        ("bin/deepspeed", "listen"),
        pytest.param(
            "deepspeed.launcher.launch",
            "linger",
            marks=pytest.mark.skipif(platform.machine() != "x86_64", reason="the number of a system call of x86_64"),
        ),
    ],
)
def test_ranks_whose_launcher_is_killed_are_asked_to_stop_and_none_is_left(tmp_path, victim, act):
    process = start(tmp_path, "--num_gpus", "2", "-m", "toy", act)
    family = ready(tmp_path, process)
    (launcher,) = [each for each in family if victim in words(each) and "RANK" not in variables(each)]
    launcher.kill()
    _, err = process.communicate(timeout=180)
    assert process.returncode == 75 and "launcher ended before its ranks" in err
    assert [(tmp_path / f"got-{rank}").read_text() for rank in range(2)] == [str(int(signal.SIGTERM))] * 2
    assert not left(family)


@pytest.mark.distributed
def test_ranks_that_do_not_end_in_time_are_killed(tmp_path):
    process = start(tmp_path, "--num_gpus", "2", "-m", "toy", "deaf", GRACE_S="1")
    family = ready(tmp_path, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=180)
    assert process.returncode == 76 and "the ranks did not end within 1 s of the signal" in err
    assert not left(family)


@pytest.mark.distributed
def test_the_rank_that_failed_first_is_named_with_its_last_lines_though_another_ended_before_it(tmp_path):
    done = launch(tmp_path, "--num_gpus", "2", "-m", "toy", "raise")
    assert done.returncode == 76
    said = done.stderr.splitlines()
    assert said[0] == "deepspeed: rank 1 failed, the first to end so"
    assert said[2] == f"  {tmp_path / 'log-1'}"
    assert said[3:] == [f"  line {n} of 1" for n in range(12, 20)]


@pytest.mark.parametrize(
    ("ended", "first"),
    [
        ({1: (76, 0.0), 0: (-9, 31.0)}, (1, 76)),  # killed by the launcher, when it lost patience
        ({0: (76, 0.0), 1: (-9, 0.1)}, (1, -9)),  # the one that was killed is seen later than its echo
        ({0: (-6, 0.0), 1: (-9, 0.1)}, (1, -9)),
        ({1: (75, 0.0), 0: (-9, 31.0)}, (1, 75)),
        ({0: (-15, 0.0), 1: (76, 0.1)}, (1, 76)),  # SIGTERM is the launcher's
        ({0: (0, 0.0), 1: (0, 0.1)}, (-1, None)),
        ({0: (0x100, 0.0), 1: (-15, 1.0)}, (0, 5)),  # the launcher asked first; it tells the code
    ],
)
def test_the_first_failure_is_the_one_that_the_others_failed_for(tmp_path, ended, first):
    """By rank its exit code and when it was seen to have ended, in seconds."""
    ranks = Ranks(str(tmp_path))
    ranks.ended = {rank: code for rank, (code, _) in ended.items()}
    ranks.seen = {rank: int(when * 1e9) for rank, (_, when) in ended.items()}
    assert ranks.first_failure(5) == first


@pytest.mark.parametrize(
    ("ended", "told", "first"),
    [
        ({0: (76, 0.1), 1: (-15, 0.2)}, 76, (1, 76)),
        ({0: (75, 0.1), 1: (-15, 0.2)}, 75, (1, 75)),
        ({0: (-9, 0.1), 1: (-15, 0.2)}, 247, (0, -9)),
    ],
)
def test_a_rank_that_has_said_that_it_fails_may_be_ended_by_the_launcher_before_it_can(tmp_path, ended, told, first):
    """Rank 1 said so before any was seen to have ended; where another one was killed, that was the cause."""
    (tmp_path / "failed-1").touch()
    os.utime(tmp_path / "failed-1", ns=(0, 0))
    ranks = Ranks(str(tmp_path))
    ranks.ended = {rank: code for rank, (code, _) in ended.items()}
    ranks.seen = {rank: int(when * 1e9) for rank, (_, when) in ended.items()}
    assert ranks.first_failure(told) == first


def test_patience_that_is_no_number_is_refused_before_anything_starts(tmp_path):
    environment = {**os.environ, "GRACE_S": "10m"}
    done = subprocess.run([WRAPPER, "-m", "toy"], env=environment, capture_output=True, text=True, timeout=180)
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, "deepspeed: GRACE_S='10m' is no number of seconds")


@pytest.mark.parametrize(("script", "code"), [("exit 7", 7), ("exit 0", 0), ("kill -KILL $$", 137), ("exit 247", 76)])
def test_the_code_of_the_launcher_underneath_is_ours_and_a_signal_becomes_a_code(script, code):
    """A launcher that SIGKILL ends has 128 + 9, as in a shell; one that exits with 256 - 9 tells of a rank."""
    call = "import os, sys; from destruct.launching.supervisor import Supervisor; "
    call += f"sys.exit(Supervisor('deepspeed').run(['sh', '-c', {script!r}], os.environ))"
    done = subprocess.run([sys.executable, "-c", call], cwd=ROOT, capture_output=True, text=True, timeout=180)
    assert done.returncode == code, done.stderr


def test_no_launcher_on_path_gives_3_and_says_what_to_do(tmp_path):
    (tmp_path / "python3").symlink_to(sys.executable)
    environment = {"PATH": f"{WRAPPER.parent}{os.pathsep}{tmp_path}"}
    done = subprocess.run([WRAPPER, "-m", "toy"], env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 3
    assert "remedy: run `make setup`" in done.stderr


def test_two_checkouts_on_path_do_not_start_each_other_for_ever(tmp_path):
    """Each takes its own folder off PATH before it looks for the next `deepspeed`."""
    other = tmp_path / "launch" / "bin"
    other.mkdir(parents=True)
    shutil.copy(WRAPPER, other / "deepspeed")
    (tmp_path / "destruct").symlink_to(ROOT / "destruct")
    (tmp_path / "python3").symlink_to(sys.executable)
    environment = {"PATH": os.pathsep.join((str(WRAPPER.parent), str(other), str(tmp_path)))}
    done = subprocess.run([WRAPPER, "-m", "toy"], env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 3
