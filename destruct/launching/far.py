"""The end of a connection on another host: starts `deepspeed --no_ssh` there, as `across.py` asks through our stdin.

First comes a line of JSON, which has what must not be read on a command line.  Then each line is the number of a signal
for the launcher, or END: kill all.  The end of stdin says that whoever started the run is gone; that is a SIGTERM.
Standard library only, none of this package: it is run as a file, by `python -I`.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping

READY = "destruct: this host listens"
"""The line from which on the output is the run's own; a shell's greetings come before it."""

END = "end"
BEGINNING_S = 10
ENVIRONMENT, PREEMPTED, RANK_FAILED = 3, 75, 76


def main() -> int:
    """The exit code of the launcher here."""
    print(READY, flush=True)
    order = json.loads(sys.stdin.readline() or "null")
    if order is None:
        return ENVIRONMENT
    try:
        os.chdir(order["folder"])
    except OSError as error:
        say(f"the folder {order['folder']} is not to be entered here: {error.strerror}")
        return ENVIRONMENT
    with tempfile.TemporaryDirectory(prefix="destruct-") as folder:
        hostfile = os.path.join(folder, "hostfile")
        with open(hostfile, "w", encoding="utf-8") as file:
            file.write(order["hostfile"])
        command = [hostfile if part is None else part for part in order["command"]]
        return run(command, {**os.environ, **order["environment"]})


def run(command: list[str], environment: Mapping[str, str]) -> int:
    libc = ctypes.CDLL(None)
    libc.prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER, so that END finds whoever loses its parent

    def follow() -> None:
        libc.prctl(
            1, signal.SIGTERM, 0, 0, 0
        )  # PR_SET_PDEATHSIG: the launcher ends, with its ranks, when we are killed

    try:
        child = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=follow
        )
    except OSError as error:
        say(f"{command[0]} does not start here: {error.strerror}")
        return ENVIRONMENT
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # of sshd, as the connection ends
        signal.signal(number, lambda received, _: child.send_signal(signal.SIGTERM))
    heard: list[str] = []
    threading.Thread(target=listen, args=(child, heard), daemon=True).start()
    code = child.wait()
    if END in heard:
        return RANK_FAILED
    # A launcher that had not begun to listen died of the signal, and had started no rank.
    return code if code >= 0 else PREEMPTED if str(-code) in heard else RANK_FAILED


def listen(child: subprocess.Popen[bytes], heard: list[str]) -> None:
    """Do as the lines of stdin say, which go to `heard`, until it ends."""
    for line in sys.stdin:
        heard.append(line.strip())
        if line.strip() == END:
            kill_all()
        elif line.strip().isdecimal():
            await_handlers(child.pid)
            child.send_signal(int(line))
    heard.append(str(int(signal.SIGTERM)))
    child.send_signal(signal.SIGTERM)


def await_handlers(pid: int) -> None:
    """Until a launcher that has just begun has its own: by Python's, a SIGINT would be a traceback."""
    until = time.monotonic() + BEGINNING_S
    while time.monotonic() < until:
        caught = [line.split()[1] for line in read(f"/proc/{pid}/status").splitlines() if line.startswith("SigCgt:")]
        if not caught or int(caught[0], 16) >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.02)


def kill_all() -> None:
    """Every process below this one."""
    while below := descendants(os.getpid()):
        for pid in below:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def descendants(pid: int) -> list[int]:
    """Process ids of all that have not ended."""
    found: list[int] = []
    for path in glob.glob(f"/proc/{pid}/task/*/children"):
        for child in map(int, read(path).split()):
            ended = read(f"/proc/{child}/stat").rpartition(")")[2].split()[:1] in ([], ["Z"], ["X"])
            found += ([] if ended else [child]) + descendants(child)
    return found


def read(path: str) -> str:
    """A file of /proc; nothing where its process is gone."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def say(problem: str) -> None:
    print(f"deepspeed: {problem}\n  remedy: have the same checkout at the same path on all hosts", file=sys.stderr)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # the thread that listens may hold the lock of stdin, for which an orderly exit waits
