"""What the ranks say: from a file for each of them to the terminal, every line under its rank's name.

Standard library only, and for python3 from 3.9 on: `launch/bin/deepspeed` runs with whichever is first on PATH.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import glob
import os
import queue
import re
import subprocess
import sys
import threading
from typing import Any, TextIO

from destruct.errors import DestructError
from destruct.exits import Exit
from destruct.launching.processes import last_lines

TORCHRUN = re.compile(rb"rank\s*: (\d+) \(local_rank: \d+\)\s+exitcode\s*: (-?\d+) \(pid: (\d+)\)")
"""How torchrun, which ends with 1 in any case, tells of a rank that failed: its number, exit code and process id."""

DRAINING_S = 10  # for what is left to be shown at the end


class Terminal:
    """Writes in a thread of its own, so that a stopped terminal, or a full pipe, holds up nothing else."""

    def __init__(self) -> None:
        self._texts: queue.SimpleQueue[tuple[str, TextIO] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def put(self, text: str, stream: TextIO | None) -> None:
        """Write it soon; nowhere where the stream was closed before we began."""
        if stream is not None:
            self._texts.put((text, stream))

    def close(self) -> None:
        """Wait until all is written, for a while."""
        self._texts.put(None)
        self._thread.join(DRAINING_S)

    def _write(self) -> None:
        while (item := self._texts.get()) is not None:
            text, stream = item
            with contextlib.suppress(OSError, ValueError):  # it has gone
                stream.write(text)
                stream.flush()


class NoOutputs:
    """Of ranks that write to the terminal themselves."""

    def begin(self) -> dict[str, Any]:
        """Begin a life; where the launcher's own words go, as subprocess.Popen takes it."""
        return {}

    def pass_on(self, terminal: Terminal, at_end: bool = False) -> None:
        """Show what the ranks have said since the last time."""

    def failures(self) -> list[tuple[int, int, int]]:
        """Number, exit code and process id of the ranks that failed, the root cause last, if the launcher told."""
        return []

    def last_lines(self, name: str) -> tuple[str, list[str]]:
        """Path of a log and its end, of this life."""
        return "", []


class Outputs(NoOutputs):
    """Of ranks that were started by `destruct/launching/rank.py`.

    Args:
        folder: is made, and holds `rank-N.log` for each rank and `launcher.log`; what is in them stays.

    Raises:
        DestructError: another launcher writes there.
    """

    def __init__(self, folder: str):
        os.makedirs(folder, exist_ok=True)
        self.folder = folder
        try:
            fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)  # until this process ends
        except BlockingIOError:
            remedy = "wait for its end, or set another run.name"
            raise DestructError(f"{folder} is in use by another launcher", remedy, Exit.ENVIRONMENT) from None
        except OSError:
            pass  # a file system without locks
        self.shown = self._sizes()
        self.started = dict(self.shown)  # bytes that were there before this life
        self.begun: dict[str, bytes] = {}  # a line that is not at its end
        self.launchers = os.open(self._path("launcher"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

    def begin(self) -> dict[str, Any]:
        self.started = self._sizes()
        return {"stdout": self.launchers, "stderr": self.launchers, "stdin": subprocess.DEVNULL}

    def pass_on(self, terminal: Terminal, at_end: bool = False) -> None:
        for path in self._sizes():
            said = _read(path, self.shown.get(path, 0))
            self.shown[path] = self.shown.get(path, 0) + len(said)
            *lines, rest = (self.begun.get(path, b"") + said).split(b"\n")
            self.begun[path] = b"" if at_end else rest
            if at_end and rest:
                lines.append(rest)
            name = os.path.basename(path)[len("rank-") : -len(".log")]
            shown = [
                line.decode("utf-8", "replace").rstrip("\r").rpartition("\r")[2] for line in lines
            ]  # as on a screen
            if name.isdecimal() and shown:
                terminal.put("".join(f"[rank {name}] {line}\n" for line in shown), sys.stdout)

    def failures(self) -> list[tuple[int, int, int]]:
        path = self._path("launcher")
        told = TORCHRUN.findall(_read(path, self.started.get(path, 0)))
        return [(int(number), int(code), int(pid)) for number, code, pid in told]

    def last_lines(self, name: str) -> tuple[str, list[str]]:
        path = self._path(name)
        return path, last_lines(path, self.started.get(path, 0))

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, f"{name}.log")

    def _sizes(self) -> dict[str, int]:
        """Of the logs, in bytes, in the order of ranks."""
        paths = glob.glob(os.path.join(glob.escape(self.folder), "*.log"))
        return {
            path: os.path.getsize(path) for path in sorted(paths, key=lambda p: (len(p), p)) if os.path.isfile(path)
        }


def _read(path: str, start: int) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(start)
            return file.read()
    except OSError:
        return b""
