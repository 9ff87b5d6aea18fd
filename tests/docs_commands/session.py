"""Commands run as a person runs them: one shell, in order, in a copy of the checkout."""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.docs_commands.blocks import ROOT, Block

LEFT_OUT = (".git", ".venv", "runs", "logs", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis")
LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")
AROUND = ("MAKEFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "ARGS", "CONFIG", "NUM_GPUS", "PYTEST_ADDOPTS")
"""What a make, with its variables, or a pytest around this one would tell those of a page."""
MARK = "\x1e"


@dataclass(frozen=True)
class Said:
    """What came of one command."""

    command: str
    code: int | None  # None: it did not end in time, or nothing before it went well
    seconds: float
    lines: tuple[str, ...]


def copy_checkout(to: Path) -> Path:
    """A copy of the checkout with its environment, in which commands may write what they like."""
    shutil.copytree(ROOT, to, ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True)
    (to / ".venv").symlink_to((ROOT / ".venv").resolve())
    installed = to / ".venv" / ".installed"
    for name in ("requirements.txt", "pyproject.toml"):  # nothing is to be installed anew for a copy
        if installed.exists():
            os.utime(to / name, (installed.stat().st_mtime - 1,) * 2)
    return to


def environment(checkout: Path) -> dict[str, str]:
    """That of the shell: plain output of one width, the code of the copy, and nothing of launchers and tests around."""
    inherited = {name: value for name, value in os.environ.items() if name not in (*LAUNCHER, *AROUND)}
    plain = {"COLUMNS": "110", "TERM": "dumb", "NO_COLOR": "1", "PYTHONPATH": str(checkout)}
    return inherited | plain | {"OMP_NUM_THREADS": "1", "VIRTUAL_ENV": ""}


def run(blocks: Sequence[Block], checkout: Path, timeout_s: float) -> list[Said]:
    """The commands of some blocks of a page in one shell, which stops at the first that ends otherwise than said."""
    asked = [(command, 0) for block in blocks for command in block.commands]
    ends = 0
    for block in blocks:
        ends += len(block.commands)
        if block.commands:
            asked[ends - 1] = (block.commands[-1], block.exit_code)
    script = "source launch/env.sh\n" + "".join(_step(*pair) for pair in asked)
    process = subprocess.Popen(
        ["bash", "-c", script],
        cwd=checkout,
        env=environment(checkout),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        # A shell's background job ignores the signal, and its children would too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
    return _parse([command for command, _ in asked], output.decode(errors="replace"))


def _step(command: str, code: int) -> str:
    return (
        f"printf '{MARK}%s\\n' $EPOCHREALTIME\n{command}\n_code=$?\n"
        f"printf '\\n{MARK}%s %s\\n' $_code $EPOCHREALTIME\n[ $_code = {code} ] || exit 1\n"
    )


def _parse(commands: list[str], output: str) -> list[Said]:
    pieces = output.split(MARK)[1:]
    said = []
    for place, command in enumerate(commands):
        begun, ended = pieces[2 * place : 2 * place + 1], pieces[2 * place + 1 : 2 * place + 2]
        start, _, text = begun[0].partition("\n") if begun else ("0", "", "")
        code, end = re.findall(r"[\d.]+", ended[0].split("\n")[0]) if ended else (None, start)
        lines = tuple(line.rstrip() for line in text.replace("\r", "\n").strip("\n").splitlines())
        said.append(Said(command, None if code is None else int(code), float(end) - float(start), lines))
    return said
