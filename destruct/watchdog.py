"""A thread of each rank that ends a run in which nothing goes on, and says for which rank all the others wait.

Each rank writes its signs of life into a file of a folder that all ranks see.  Once one of them has given none for too
long, all write the stacks of their threads to their logs, look at each other for a moment, and end.
"""

import faulthandler
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from destruct import last_words, streams
from destruct.exits import Exit
from destruct.heartbeat import HEART, Heartbeat

if TYPE_CHECKING:
    from destruct.engine.topology import Topology

LOOKS = 20
"""How often a watchdog looks within the time that it grants."""

STALLED, VERDICT = "stalled", "verdict"
"""The file that calls all ranks to the end, and that which says who is at fault."""

LONGEST_LOOK_S = 5.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What a rank last wrote of itself."""

    looks: int  # of its watchdog so far: one that does not count on is stopped, or kept by another thread
    count: int
    phase: str
    waits: bool


class Watchdog:
    """Looks after one rank.

    Args:
        folder: of the files.
        log: of this rank, for the stacks.
        stall_s: seconds without a sign of life that are granted.
    """

    def __init__(self, heart: Heartbeat, folder: Path, log: Path, rank: int, world_size: int, stall_s: float):
        self.heart, self.folder, self.log = heart, folder, log
        self.rank, self.world_size, self.stall_s = rank, world_size, stall_s
        self.look_s = min(stall_s / LOOKS, LONGEST_LOOK_S)
        self._looks, self._over = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Within the block silence counts."""
        self.heart.alive()
        self._thread.start()
        try:
            yield
        finally:
            self._over.set()
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        with self.log.open("a", encoding="utf-8") as log:
            before = time.monotonic()
            while not self._over.wait(self.look_s):
                now = time.monotonic()
                if now - before > self.stall_s / 2:
                    self.heart.alive()  # this process was stopped as a whole, and goes on again
                before = now
                self._show()
                # A thread of C's: it writes the stacks where this one cannot run, as another keeps the interpreter.
                faulthandler.dump_traceback_later(self.stall_s, file=log)
                if now - self.heart.at > self.stall_s or os.path.exists(self.folder / STALLED):
                    faulthandler.dump_traceback(file=log)
                    self._end()

    def _show(self) -> None:
        """Write this rank's file; a disk that refuses is the business of whoever saves."""
        self._looks += 1
        seen = Seen(self._looks, self.heart.count, self.heart.phase, self.heart.waits)
        aside = self.folder / f".rank-{self.rank}"
        with suppress(OSError):
            aside.write_text(json.dumps(asdict(seen)), encoding="utf-8")
            os.replace(aside, self.folder / f"rank-{self.rank}")

    def _end(self) -> NoReturn:
        try:
            faulthandler.cancel_dump_traceback_later()
            with suppress(OSError):
                (self.folder / STALLED).touch()
            before = self._all()
            for _ in range(LOOKS // 2):  # until the others have written their stacks, too
                time.sleep(self.look_s)
                self._show()
            self._say(*self._first_verdict(verdict(before, self._all())))
        finally:
            os._exit(Exit.RANK_FAILED)

    def _say(self, late: list[int], words: str, is_first: bool) -> None:
        last_words.blamed(late, words)
        if is_first:
            who = " and ".join(f"rank {rank}" for rank in late)
            remedy = f"see the stacks at the end of {self.log.with_name(f'rank-{late[0] if late else 0}.log')}"
            said = f"nothing has gone on for {self.stall_s:g} s: {who} {words}" if late else words
            os.write(streams.err().fileno(), f"destruct: {said}\n  remedy: {remedy}\n".encode())

    def _first_verdict(self, mine: tuple[list[int], str]) -> tuple[list[int], str, bool]:
        """That of the rank that came to one first, as those after it see ranks that have ended; whether it is ours."""
        path, aside = self.folder / VERDICT, self.folder / f".{VERDICT}-{self.rank}"
        try:
            aside.write_text(json.dumps(mine), encoding="utf-8")
            with suppress(FileExistsError):
                os.link(aside, path)
            late, words = json.loads(path.read_text(encoding="utf-8"))
            return late, words, os.stat(aside).st_nlink == 2
        except (OSError, ValueError):
            return *mine, True

    def _all(self) -> list[Seen | None]:
        return [_read(self.folder / f"rank-{rank}") for rank in range(self.world_size)]


@contextmanager
def watched(run_folder: Path, stall_s: float, topology: "Topology") -> Iterator[None]:
    """Within the block a stall ends the run; all ranks enter it.

    Args:
        stall_s: as in `guard.stall_s`; 0: nothing is watched.
    """
    if stall_s == 0:
        yield
        return
    folder = topology.first_rank_makes(lambda: _new_folder(run_folder / "heartbeats"))
    log = run_folder / "logs" / f"rank-{topology.rank}.log"
    with Watchdog(HEART, folder, log, topology.rank, topology.world_size, stall_s).looking():
        yield


def _new_folder(place: Path) -> Path:
    """One for this life alone, as a rank of the life before may still be ending."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(mode=0o700, exist_ok=True)
    return Path(tempfile.mkdtemp(dir=place))


def _read(path: Path) -> Seen | None:
    try:
        return Seen(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def verdict(before: list[Seen | None], after: list[Seen | None]) -> tuple[list[int], str]:
    """The ranks that the others wait for, none where it cannot be told, and in words what is wrong.

    Args:
        before, after: what each rank showed at the first and at the last look of a stalled one.
    """
    gone = [rank for rank, seen in enumerate(after) if seen is None]
    if gone:
        return gone, "shows nothing"
    seen = [each for each in after if each is not None]
    still = [rank for rank, (a, b) in enumerate(zip(before, after, strict=True)) if a == b]
    if still:
        return still, f"is stopped, or keeps its interpreter busy; last seen in phase {seen[still[0]].phase}"
    furthest = max(each.count for each in seen)
    least = min(each.count for each in seen)
    behind = [rank for rank, each in enumerate(seen) if each.count == least]
    late = [rank for rank in behind if not seen[rank].waits] or behind
    phase = seen[late[0]].phase
    if 1 < len(seen) == len(late):
        return [], f"nothing goes on in phase {phase}, and no rank is behind the others: their stacks tell"
    calls = f"{furthest - least} calls behind" if furthest > least else "not where the others wait"
    return late, f"is late in phase {phase}, {calls}"
