"""What looks after the ranks of a launcher: signals, orphans, the first failure, the exit code.

Standard library only, and for python3 from 3.9 on: `launch/bin/deepspeed` runs with whichever is first on PATH.
"""

from __future__ import annotations

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
from collections.abc import Mapping

from destruct.launching.outputs import NoOutputs, Terminal
from destruct.launching.processes import code_of, descendants, send
from destruct.launching.ranks import KILLED_BY, RANK_FAILED, Ranks

CONFIG, ENVIRONMENT, PREEMPTED = 2, 3, 75
TOLD = (CONFIG, ENVIRONMENT, PREEMPTED, 77, 130)
"""Exit codes of a rank that has said why; 77: it diverged, 130: Ctrl-C."""

FORWARDED = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]
CLOSING = [signal.SIGHUP, signal.SIGQUIT]
AGAIN = 0x200  # of no process: the run is to be started once more
LOOK_S = 0.1
ENDING_S = 10  # for the last threads of a process that has ended

MEMORY = "read its last lines; SIGKILL often means that memory ran out"


def heed() -> list[int]:
    """The signals that ask this process to stop, in a list that grows as they come."""
    asked: list[int] = []
    for number in FORWARDED:
        signal.signal(number, lambda received, _: asked.append(received))
    for number in CLOSING:  # a terminal that goes away; not where nohup keeps it
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda received, _: asked.append(signal.SIGTERM))
    return asked


def grace() -> float:
    """Seconds from a signal to the end of patience; ValueError where the environment says no number."""
    return float(os.environ.get("GRACE_S", "600"))


def hold(reports: str) -> None:
    """Lock the folder until this process ends, by which ranks of this machine know that it has."""
    with open(os.path.join(reports, "node"), "w", encoding="utf-8") as node:
        node.write(platform.node())
    with contextlib.suppress(OSError):  # of a file system without locks, where they never know
        fcntl.flock(os.open(reports, os.O_RDONLY), fcntl.LOCK_EX)


class Supervisor:
    """Starts a launcher, or a rank alone, and looks after the ranks until none is left.

    Args:
        name: of the program that speaks to the person.
        alone: the command is itself the one rank.
        outputs: where the ranks' words are to be had, if they do not go to the terminal by themselves.
    """

    def __init__(self, name: str, alone: bool = False, outputs: NoOutputs | None = None):
        self.name = name
        self.alone = alone
        self.outputs = outputs or NoOutputs()
        self.asked = heed()
        self.terminal = Terminal()
        self.impatient = False  # what did not end in time was killed
        self.codes: dict[int, int] = {}  # of children that have ended, by process id

    def run(self, command: list[str], environment: Mapping[str, str]) -> int:
        """The exit code of a run; one that set itself back is started again.  No process of it is left."""
        try:
            grace()
        except ValueError:
            self.say(f"GRACE_S={os.environ['GRACE_S']!r} is no number of seconds", "write GRACE_S=600")
            return CONFIG
        while (code := self.live(command, environment)) == AGAIN:
            self.terminal.put(f"{self.name}: the run starts again, from its last checkpoint\n", sys.stderr)
            environment = {**environment, "DESTRUCT_AGAIN": "1"}
        return code

    def live(self, command: list[str], environment: Mapping[str, str]) -> int:
        """The exit code of one life, or AGAIN."""
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: whoever loses its parent becomes our child
        left_over = ("RANK", "LOCAL_RANK")  # of an outer launcher; what has one below us is a rank of ours
        variables = {name: value for name, value in environment.items() if name not in left_over}
        with tempfile.TemporaryDirectory(prefix="destruct-") as reports:
            hold(reports)
            variables["DESTRUCT_REPORTS"] = reports
            self.codes.clear()
            self.ranks = Ranks(reports)
            # A session of its own, or a terminal's Ctrl-C would reach the launchers and the ranks besides.
            child = subprocess.Popen(command, env=variables, start_new_session=True, **self.outputs.begin())
            if self.alone:
                self.ranks.number[child.pid] = 0
            try:
                self._watch(child.pid)
            finally:
                self._finish()
                self.outputs.pass_on(self.terminal, at_end=True)
            self.ranks.learn(self.outputs.failures())
            child.returncode = self.codes[child.pid]
            return self._verdict(child.returncode)

    def _watch(self, launcher: int) -> None:
        """Until the launcher ends: pass signals on, and note how ranks end."""
        told, deadline = 0, None
        while launcher not in self.codes:
            self._look(launcher)
            for number in self.asked[told:]:
                if self.ranks.number:
                    send(self.ranks.alive(), number)
                else:
                    send(descendants(os.getpid()), signal.SIGTERM)
                told += 1
                deadline = deadline or time.monotonic() + grace()
            if deadline is not None and time.monotonic() > deadline:
                self._lose_patience()
                send(descendants(os.getpid()), signal.SIGKILL)
            at_fault, _ = self.ranks.blamed()
            stopped = [pid for pid in self.ranks.alive() if self.ranks.number[pid] in at_fault]
            send(stopped, signal.SIGKILL)
            self._reap()
            if launcher not in self.codes:
                time.sleep(LOOK_S)

    def _lose_patience(self) -> None:
        if not self.impatient:
            self.impatient = True
            late = f"the ranks did not end within {grace():.0f} s of the signal: they are killed"
            self.say(late, "set GRACE_S to more")

    def _look(self, launcher: int) -> None:
        if not self.alone:
            self.ranks.look(launcher)
        self.outputs.pass_on(self.terminal)

    def _finish(self) -> None:
        """End whatever the launcher left: the ranks as if asked to, so that they save, and all the others at once."""
        self._look(os.getpid())  # whose children they have become, those too that came since the last look
        alive = [pid for pid in self.ranks.alive() if code_of(pid) is None]
        if alive and not self.asked:
            self.say("the launcher ended before its ranks, which are asked to stop", "see what killed it")
            send(alive, signal.SIGTERM)
        deadline = time.monotonic() + grace()
        while any(code_of(pid) is None for pid in alive) and time.monotonic() < deadline:
            self._reap()
            self.outputs.pass_on(self.terminal)
            time.sleep(LOOK_S)
        if any(code_of(pid) is None for pid in alive):
            self._lose_patience()
        while left := descendants(os.getpid()):
            send(left, signal.SIGKILL)
            self._reap()
            time.sleep(LOOK_S)
        deadline = time.monotonic() + ENDING_S
        while self._reap() and time.monotonic() < deadline:
            time.sleep(LOOK_S)

    def _reap(self) -> bool:
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
            self.codes[pid] = os.waitstatus_to_exitcode(status)
            self.ranks.reaped(pid, self.codes[pid])

    def _verdict(self, launcher: int) -> int:
        """The exit code of this life; says which rank failed, and what it said last."""
        ranks, asked = self.ranks, bool(self.asked)
        if ranks.want_it_again() and not asked:
            return AGAIN
        number, code = ranks.first_failure(launcher)
        by_signal = asked and code is not None and -code in FORWARDED
        if code == PREEMPTED or by_signal or (asked and not ranks.number):
            return PREEMPTED  # a rank that had not begun to listen died of the signal: nothing was there to be lost
        if self.impatient:
            return RANK_FAILED
        at_fault, why = ranks.blamed()
        if why:
            who = " and ".join(f"rank {number}" for number in at_fault)
            self._tell(f"{who} {why}".strip(), "see the last lines of its log", at_fault[0] if at_fault else 0)
            return RANK_FAILED
        if code is None:
            return self._verdict_on_the_launcher(launcher)
        if code in TOLD:
            return code  # it has said itself what is wrong
        if 0 < code != RANK_FAILED:
            self._tell(f"rank {number} ended with {code}", "see what it said", number)
            return code
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else "failed"
        remedy = MEMORY if code == -signal.SIGKILL else "see what it said"
        self._tell(f"rank {number} {how}" + ("" if self.alone else ", the first to end so"), remedy, number)
        return RANK_FAILED

    def _verdict_on_the_launcher(self, code: int) -> int:
        """The exit code where no rank of this machine failed."""
        if code in KILLED_BY:
            self.say(f"a rank was killed by {KILLED_BY[code]}", MEMORY)
            return RANK_FAILED
        if code == 0 and self.ranks.launched and not self.ranks.done():  # DeepSpeed calls that a success
            if not self.ranks.started:
                self.say("DeepSpeed's launcher was killed before it had started a rank", "see what killed it")
            return RANK_FAILED
        path, lines = self.outputs.last_lines("launcher")
        if code != 0 and lines:
            self.say(f"the launcher ended with {code}, and no rank had", "see what it said")
            self._show(path, lines)
        return code if code >= 0 else 128 - code

    def _tell(self, problem: str, remedy: str, number: int) -> None:
        """Say what a rank did, and what it said last."""
        self.say(problem, remedy)
        told = (
            self.ranks.last_lines(number),
            self.outputs.last_lines(f"rank-{number}"),
            self.outputs.last_lines("launcher"),
        )
        self._show(*next((each for each in told if each[1]), told[0]))

    def _show(self, path: str, lines: list[str]) -> None:
        self.terminal.put("".join(f"  {line}\n" for line in [path, *lines] if lines), sys.stderr)

    def say(self, problem: str, remedy: str) -> None:
        """Tell the person."""
        self.terminal.put(f"{self.name}: {problem}\n  remedy: {remedy}\n", sys.stderr)
