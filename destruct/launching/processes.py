"""Processes below this one, as /proc of Linux has them.

Standard library only, and for any python3: `launch/bin/deepspeed` runs with whichever is first on PATH.
"""

import glob
import os

GONE = 0x100


def children(pid):
    """Process ids; of all threads of the parent."""
    found = []
    for path in glob.glob(f"/proc/{pid}/task/*/children"):
        found += [int(child) for child in read(path).split()]
    return found


def descendants(pid):
    """Process ids of all that have not ended."""
    below = [deep for child in children(pid) for deep in [child, *descendants(child)]]
    return [each for each in below if code_of(each) is None]


def ranks_below(pid):
    """Numbers of the ranks by process id; what a rank starts is none."""
    found = {}
    for child in children(pid):
        named = [entry for entry in read(f"/proc/{child}/environ").split("\0") if entry.startswith("RANK=")]
        found.update({child: int(named[0][5:])} if named else ranks_below(child))
    return found


def code_of(pid):
    """The exit code of an ended process, below 0 the signal; GONE after its parent asked for it; None while it runs."""
    fields = read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    if not fields:
        return GONE
    return os.waitstatus_to_exitcode(int(fields[49])) if fields[0] in "ZX" else None


def read(path):
    """A file of /proc; nothing where its process is gone."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""


def send(pids, number):
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
