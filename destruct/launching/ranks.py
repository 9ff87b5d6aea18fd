"""The ranks of this machine: which there are, how they ended, and what they left to be said.

Standard library only, and for python3 from 3.9 on: `launch/bin/deepspeed` runs with whichever is first on PATH.
"""

from __future__ import annotations

import glob
import os
import signal
import time

from destruct.launching.processes import GONE, children, code_of, last_lines, ranks_below, read

FATAL = [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE]
KILLED_BY = {256 - number: number.name for number in FATAL}
"""DeepSpeed exits with minus the number of the signal that killed a rank, modulo 256."""

LAUNCHER = "deepspeed.launcher.launch"
RANK_FAILED = 76
ECHO_S = 20  # DeepSpeed kills the other ranks 30 s after the first one ended


class Ranks:
    """The ranks of this machine: which there are, and how they ended, in that order.

    Args:
        reports: folder in which a rank links to its log as `rank-N`, and says that it fails as `failed-N`, that a rank
            is at fault as `blamed-N` with the reason, and that the run is to be started again as `again`.
    """

    def __init__(self, reports: str):
        self.reports = reports
        self.launched = self.started = False  # DeepSpeed's launcher of this machine runs, and has started a rank
        self.number: dict[int, int] = {}  # by process id
        self.seen: dict[int, int] = {}  # nanoseconds by number: when it was seen to have ended
        # Exit code by number; below 0 the signal; GONE where its launcher was quicker to ask.
        self.ended: dict[int, int] = {}
        # Number and exit code of the first failure, in the words of a launcher that ends with 1 whatever it was.
        self.root: tuple[int, int] | None = None

    def look(self, launcher: int) -> None:
        """Find new ones, and those that ended since."""
        for child in children(launcher):
            if LAUNCHER in read(f"/proc/{child}/cmdline"):
                self.launched = True
                # A rank that has ended is there for a second, and says no more than its code.
                self.started = self.started or any(code_of(rank) == 0 for rank in children(child))
        self.number.update(ranks_below(launcher))
        self.started = self.started or bool(self.number)
        for pid, number in self.number.items():
            code = None if number in self.ended else code_of(pid)
            if code is not None:
                self._note(number, code)

    def reaped(self, pid: int, code: int) -> None:
        """One that had lost its launcher ended."""
        if self.number.get(pid, -1) not in {-1, *self.ended}:
            self._note(self.number[pid], code)

    def learn(self, failures: list[tuple[int, int, int]]) -> None:
        """Take what the launcher tells of the ranks that failed: it may have been quicker to ask, or to see one at all.

        Args:
            failures: number, exit code and process id, the root cause last.
        """
        gone = [number for number, code in self.ended.items() if code == GONE]
        if failures:
            self.ended.update(dict.fromkeys(gone, 0))
            self.root = failures[-1][:2]
        for number, code, pid in failures:
            if pid not in self.number:
                self.seen[number] = time.time_ns()
            if pid not in self.number or number in gone:
                self.number[pid], self.ended[number] = number, code

    def _note(self, number: int, code: int) -> None:
        self.ended[number], self.seen[number] = code, time.time_ns()

    def done(self) -> bool:
        """Whether all that were started ended well; one whose code nobody told counts as its launcher does."""
        return self.started and all(self.ended.get(number) in (0, GONE) for number in self.number.values())

    def alive(self) -> list[int]:
        """Process ids of those that have not ended."""
        return [pid for pid, number in self.number.items() if number not in self.ended]

    def first_failure(self, launcher: int) -> tuple[int, int | None]:
        """Number and code of the one that failed first, for want of which the others fail; -1 and None where none did.

        Args:
            launcher: code of DeepSpeed's launcher, which has that of a rank.
        """
        told = launcher - 256 if launcher in KILLED_BY else launcher
        if self.root is not None:
            told = self.root[1]
            if told == -signal.SIGTERM:  # of many that ended so, only that launcher knows the first
                return self.root
        known = {number: told if code == GONE else code for number, code in self.ended.items()}
        # DeepSpeed ends the others by SIGTERM, and so it is no first failure where the launcher tells of another code.
        echo = -signal.SIGTERM if told != -signal.SIGTERM else None
        for number in [number for number, code in known.items() if code == echo and self._said(number)]:
            known[number] = told if told > 0 else RANK_FAILED  # it was ended on its way out
        failed = [number for number, code in known.items() if code not in (0, echo)]
        if not failed:
            return -1, None
        late = min(map(self._when, failed)) + ECHO_S * 10**9
        hit = [number for number in failed if from_outside(known[number]) and self._when(number) < late]
        number = min(hit or failed, key=self._when)
        return number, known[number]

    def _when(self, number: int) -> int:
        """When a rank said that it failed, else when it was seen to have ended."""
        return os.stat(self._report(number)).st_mtime_ns if self._said(number) else self.seen[number]

    def _said(self, number: int) -> bool:
        """Whether a rank said that it fails."""
        return os.path.exists(self._report(number))

    def _report(self, number: int) -> str:
        return os.path.join(self.reports, f"failed-{number}")

    def blamed(self) -> tuple[list[int], str]:
        """Numbers of the ranks that the others hold at fault, and why; the why alone where nobody is."""
        reports = glob.glob(os.path.join(self.reports, "blamed-*"))
        named = [path.rpartition("-")[2] for path in reports]
        return sorted(int(name) for name in named if name.isdecimal()), "".join(map(read, reports[:1]))

    def want_it_again(self) -> bool:
        """Whether the run has set itself back, and its next life is to go on from its last checkpoint."""
        return os.path.exists(os.path.join(self.reports, "again"))

    def last_lines(self, number: int) -> tuple[str, list[str]]:
        """Path of a rank's log and its end; nothing where it has none, and not what it printed either."""
        path = os.path.realpath(os.path.join(self.reports, f"rank-{number}"))
        is_ours = os.path.dirname(path) == os.path.realpath(self.reports)  # and gone with this process
        return "what it printed before it had a log:" if is_ours else path, last_lines(path)


def from_outside(code: int) -> bool:
    """Whether a rank was killed, and not for want of another one: that ends in an exception or in abort()."""
    return code < 0 and code not in (-signal.SIGABRT, -signal.SIGTERM)
