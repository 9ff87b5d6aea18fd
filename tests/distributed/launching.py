"""Starting real ranks from a test, and leaving none behind."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.processes import below, runs, variables

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 420


def environment() -> dict[str, str]:
    """This process's environment with one thread per rank and no rank variables of an earlier group."""
    unwanted = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    binaries = f"{ROOT / 'launch' / 'bin'}{os.pathsep}{Path(sys.executable).parent}"
    return kept | {
        "OMP_NUM_THREADS": "1",
        "PATH": f"{binaries}{os.pathsep}{kept.get('PATH', '')}",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{kept.get('PYTHONPATH', '')}",
    }


def run(command: list[str], timeout_s: float = TIMEOUT_S, module_path: Path | None = None):
    """Run a command in a session of its own; what is left of it when it ends or overruns is killed.

    Args:
        module_path: a folder whose modules the ranks can import.

    Returns:
        subprocess.CompletedProcess with both outputs as text.
    """
    variables = environment()
    if module_path is not None:
        variables["PYTHONPATH"] = f"{module_path}{os.pathsep}{variables['PYTHONPATH']}"
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout_s)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def torchrun(ranks: int, *arguments: str) -> list[str]:
    """The command that starts `ranks` ranks of a module or file on a port of their own."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return [*launcher, *arguments]


@dataclass
class Life:
    """A run's processes from their start to their end."""

    code: int
    out: str
    err: str
    left: list[psutil.Process]  # those that outlived the launcher


def begin(command: list[str]) -> subprocess.Popen[str]:
    """Start a command that `end` waits for."""
    outputs = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, env=environment(), text=True, **outputs)


def end(process: subprocess.Popen[str]) -> Life:
    """Wait; what outlives it is told, and killed."""
    family = below(process.pid)
    out, err = process.communicate(timeout=TIMEOUT_S)
    left = [each for each in family if runs(each)]
    for each in left:
        each.kill()
    return Life(process.returncode, out, err, left)


def ranks_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The ranks below a launcher, in their order."""
    found = [(int(rank), each) for each in below(process.pid) if (rank := variables(each).get("RANK")) is not None]
    return [each for _, each in sorted(found, key=lambda pair: pair[0])]


def updates_in(folder: Path) -> int:
    """PPO updates that a run's folder tells of."""
    path = folder / "metrics.jsonl"
    return path.read_text().count('"ppo/steps"') if path.exists() else 0


def wait_for_updates(folder: Path, updates: int, process: subprocess.Popen[str]) -> None:
    """Until a run has made so many."""
    until = time.monotonic() + TIMEOUT_S
    while updates_in(folder) < updates:
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.02)
