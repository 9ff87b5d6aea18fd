"""Processes below this one, as /proc of Linux has them.

Standard library only, and for python3 from 3.9 on: `launch/bin/deepspeed` runs with whichever is first on PATH.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable

GONE = 0x100
LAST_LINES, TAIL = 8, 16384  # bytes


def children(pid: int) -> list[int]:
    """Process ids; of all threads of the parent."""
    found: list[int] = []
    for path in glob.glob(f"/proc/{pid}/task/*/children"):
        found += [int(child) for child in read(path).split()]
    return found


def descendants(pid: int) -> list[int]:
    """Process ids of all that have not ended."""
    below = [deep for child in children(pid) for deep in [child, *descendants(child)]]
    return [each for each in below if code_of(each) is None]


def ranks_below(pid: int) -> dict[int, int]:
    """Numbers of the ranks by process id; what a rank starts is none."""
    found: dict[int, int] = {}
    for child in children(pid):
        named = [entry for entry in read(f"/proc/{child}/environ").split("\0") if entry.startswith("RANK=")]
        found.update({child: int(named[0][5:])} if named else ranks_below(child))
    return found


def code_of(pid: int) -> int | None:
    """The exit code of an ended process, below 0 the signal; GONE after its parent asked for it; None while it runs."""
    fields = read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    if not fields:
        return GONE
    return os.waitstatus_to_exitcode(int(fields[49])) if fields[0] in "ZX" else None


def read(path: str) -> str:
    """A file of /proc; nothing where its process is gone."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""


def last_lines(path: str, start: int = 0) -> list[str]:
    """The end of a log, from `start` bytes on; nothing where there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(start, os.fstat(file.fileno()).st_size - TAIL))
            return file.read().decode("utf-8", "replace").splitlines()[-LAST_LINES:]
    except OSError:
        return []


def send(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
