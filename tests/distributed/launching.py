"""Starting real ranks from a test, and leaving none behind."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

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
