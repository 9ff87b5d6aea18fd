"""What the ranks say: from a file for each of them to the terminal, every line under its rank's name.

Standard library only, and for any python3: `launch/bin/deepspeed` runs with whichever is first on PATH.
"""

import contextlib
import glob
import os
import re
import subprocess
import sys
from typing import Any, TextIO

from destruct.launching.processes import last_lines

TORCHRUN = re.compile(rb"rank\s*: (\d+) \(local_rank: \d+\)\s+exitcode\s*: (-?\d+) \(pid: (\d+)\)")
"""How torchrun, which ends with 1 in any case, tells of a rank that failed: its number, exit code and process id."""


class NoOutputs:
    """Of ranks that write to the terminal themselves."""

    def of_launcher(self) -> dict[str, Any]:
        """Where the launcher's own words go, as subprocess.Popen takes it."""
        return {}

    def pass_on(self, at_end: bool = False) -> None:
        """Write to the terminal what the ranks have said since the last time."""

    def failures(self) -> list[tuple[int, int, int]]:
        """Number, exit code and process id of the ranks that failed, as far as the launcher told."""
        return []

    def last_lines(self, name: str) -> tuple[str, list[str]]:
        """Path of a log and its end."""
        return "", []


class Outputs(NoOutputs):
    """Of ranks that were started by `destruct/launching/rank.py`.

    Args:
        folder: is made, and holds `rank-N.log` for each rank and `launcher.log`; what is in them stays.
    """

    def __init__(self, folder: str):
        os.makedirs(folder, exist_ok=True)
        self.folder = folder
        self.passed_on = {path: os.stat(path).st_size for path in self._paths()}  # bytes
        self.begun: dict[str, bytes] = {}  # a line that is not at its end, by path
        self.begin = 0  # of this life, in the launcher's log
        self.launchers = os.open(os.path.join(folder, "launcher.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

    def of_launcher(self) -> dict[str, Any]:
        self.begin = os.fstat(self.launchers).st_size
        return {"stdout": self.launchers, "stderr": self.launchers, "stdin": subprocess.DEVNULL}

    def pass_on(self, at_end: bool = False) -> None:
        for path in self._paths():
            with open(path, "rb") as file:
                file.seek(self.passed_on.get(path, 0))
                said = file.read()
            self.passed_on[path] = self.passed_on.get(path, 0) + len(said)
            *lines, rest = (self.begun.get(path, b"") + said).split(b"\n")
            self.begun[path] = b"" if at_end else rest
            if at_end and rest:
                lines.append(rest)
            name = os.path.basename(path)[len("rank-") : -len(".log")]
            for line in lines:
                shown = line.decode("utf-8", "replace").rstrip("\r").rpartition("\r")[2]  # as a terminal leaves it
                put(f"[rank {name}] {shown}\n", sys.stdout)

    def failures(self) -> list[tuple[int, int, int]]:
        with open(os.path.join(self.folder, "launcher.log"), "rb") as log:
            log.seek(self.begin)
            return [(int(number), int(code), int(pid)) for number, code, pid in TORCHRUN.findall(log.read())]

    def last_lines(self, name: str) -> tuple[str, list[str]]:
        path = os.path.join(self.folder, f"{name}.log")
        return path, last_lines(path)

    def _paths(self) -> list[str]:
        return sorted(
            glob.glob(os.path.join(glob.escape(self.folder), "rank-*.log")), key=lambda path: (len(path), path)
        )


def put(text: str, stream: TextIO) -> None:
    """Write to a terminal or a pipe, if it is there still."""
    with contextlib.suppress(OSError):
        stream.write(text)
        stream.flush()
