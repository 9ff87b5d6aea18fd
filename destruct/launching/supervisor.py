"""What looks after the ranks of a launcher: signals, orphans, the first failure, the exit code.

Standard library only, and for any python3: `launch/bin/deepspeed` runs with whichever is first on PATH.
"""

import contextlib
import ctypes
import fcntl
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time

from destruct.launching.processes import code_of, descendants, send
from destruct.launching.ranks import KILLED_BY, Ranks

PREEMPTED, RANK_FAILED = 75, 76
FORWARDED = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]
CLOSING = [signal.SIGHUP, signal.SIGQUIT]
AGAIN = 0x200  # of no process: the run is to be started once more
LOOK_S = 0.1
ENDING_S = 10  # for the last threads of a process that has ended

MEMORY = "read its last lines; SIGKILL often means that memory ran out"


def heed():
    """The signals that ask this process to stop, in a list that grows as they come."""
    asked = []
    for number in FORWARDED:
        signal.signal(number, lambda received, _: asked.append(received))
    for number in CLOSING:  # a terminal that goes away; not where nohup keeps it
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda received, _: asked.append(signal.SIGTERM))
    return asked


def run(command, environment, asked):
    """The exit code of a run under DeepSpeed's launcher, or AGAIN; when this returns, no process of it is left."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: whoever loses its parent becomes our child
    left_over = ("RANK", "LOCAL_RANK")  # of an outer launcher; what has one below us is a rank of ours
    environment = {name: value for name, value in environment.items() if name not in left_over}
    with tempfile.TemporaryDirectory(prefix="destruct-") as reports:
        hold(reports)
        ranks = Ranks(reports)
        # A session of its own, or a terminal's Ctrl-C would reach the launchers and the ranks besides.
        child = subprocess.Popen(command, env={**environment, "DESTRUCT_REPORTS": reports}, start_new_session=True)
        codes = {}
        try:
            watch(child.pid, ranks, asked, codes)
        finally:
            finish(ranks, codes, asked)
        child.returncode = codes[child.pid]
        return verdict(child.returncode, ranks, bool(asked))


def hold(reports):
    """Lock the folder until this process ends, by which ranks of this machine know that it has."""
    with open(os.path.join(reports, "node"), "w", encoding="utf-8") as node:
        node.write(platform.node())
    with contextlib.suppress(OSError):  # of a file system without locks, where they never know
        fcntl.flock(os.open(reports, os.O_RDONLY), fcntl.LOCK_EX)


def watch(launcher, ranks, asked, codes):
    """Until the launcher ends: pass signals on, note how ranks end, and exit codes by process id in `codes`."""
    told, deadline = 0, None
    while launcher not in codes:
        ranks.look(launcher)
        for number in asked[told:]:
            if ranks.number:
                send(ranks.alive(), number)
            else:
                send(descendants(os.getpid()), signal.SIGTERM)
            told += 1
            deadline = deadline or time.monotonic() + grace()
        if deadline is not None and time.monotonic() > deadline:
            say(f"the ranks did not end within {grace():.0f} s of the signal: they are killed", "set GRACE_S to more")
            send(descendants(os.getpid()), signal.SIGKILL)
        at_fault, _ = ranks.blamed()
        send([pid for pid in ranks.alive() if ranks.number[pid] in at_fault], signal.SIGKILL)  # they may be stopped
        reap(codes, ranks)
        if launcher not in codes:
            time.sleep(LOOK_S)


def finish(ranks, codes, asked):
    """End whatever the launcher left: the ranks as if asked to, so that they save, and all the others at once."""
    ranks.look(os.getpid())  # whose children they have become, those too that came since the last look
    alive = [pid for pid in ranks.alive() if code_of(pid) is None]
    if alive and not asked:
        say("DeepSpeed's launcher ended before its ranks, which are asked to stop", "see what killed it")
        send(alive, signal.SIGTERM)
    deadline = time.monotonic() + grace()
    while any(code_of(pid) is None for pid in alive) and time.monotonic() < deadline:
        reap(codes, ranks)
        time.sleep(LOOK_S)
    while left := descendants(os.getpid()):
        send(left, signal.SIGKILL)
        reap(codes, ranks)
        time.sleep(LOOK_S)
    deadline = time.monotonic() + ENDING_S
    while reap(codes, ranks) and time.monotonic() < deadline:
        time.sleep(LOOK_S)


def reap(codes, ranks):
    """Take note of all of our children that have ended; returns whether there are more, be it ones that look so.

    A process is a zombie before its last thread has gone, and only then to be had.
    """
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return True
        codes[pid] = os.waitstatus_to_exitcode(status)
        ranks.reaped(pid, codes[pid])


def verdict(launcher, ranks, asked):
    """The exit code of the run; says which rank failed, and what it said last."""
    if ranks.want_it_again() and not asked:
        return AGAIN
    number, code = ranks.first_failure(launcher)
    by_signal = asked and code is not None and -code in FORWARDED
    if code == PREEMPTED or by_signal or (asked and not ranks.number):
        return PREEMPTED  # a rank that had not begun to listen died of the signal: nothing was there to be lost
    at_fault, why = ranks.blamed()
    if why:
        who = " and ".join(f"rank {number}" for number in at_fault)
        tell(f"{who} {why}".strip(), "see the last lines of its log", ranks.last_lines(at_fault[0] if at_fault else 0))
        return RANK_FAILED
    if code is None:  # no rank of this machine failed
        if launcher in KILLED_BY:
            say(f"a rank was killed by {KILLED_BY[launcher]}", MEMORY)
            return RANK_FAILED
        if launcher == 0 and ranks.launched and not ranks.done():  # DeepSpeed calls that a success
            if not ranks.started:
                say("DeepSpeed's launcher was killed before it had started a rank", "see what killed it")
            return RANK_FAILED
        return launcher if launcher >= 0 else 128 - launcher
    if 0 < code != RANK_FAILED:
        return code  # it has said itself what is wrong
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else "failed"
    remedy = MEMORY if code == -signal.SIGKILL else "see what it said"
    tell(f"rank {number} {how}, the first to end so", remedy, ranks.last_lines(number))
    return RANK_FAILED


def tell(problem, remedy, log):
    """Say what a rank did, and what it said last."""
    path, lines = log
    say(problem, remedy)
    print("".join(f"  {line}\n" for line in [path, *lines] if lines), end="", file=sys.stderr)


def grace():
    """Seconds from a signal to the end of patience."""
    return float(os.environ.get("GRACE_S", "600"))


def say(problem, remedy):
    print(f"deepspeed: {problem}\n  remedy: {remedy}", file=sys.stderr)
