"""Chains of lives of one run: each is struck by SIGKILL at a random time, the last one ends, as if nothing had been."""

import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from tests.faults.lives import SAVING, UPDATES, Life, command, final_digest, newest, steps_in, steps_of, strike
from tests.faults.trials import Outcome, Trials

A_CHAIN = 25
"""Kills of a chain, after which the run is left in peace."""

TARGETS = {"rank 0": 3, "rank 1": 3, "launcher": 2, "wrapper": 1, "everything": 3}
AIMS = {"start-up": 3, "conversion": 1, "step": 3, "stage": 5, "pointer": 2}
"""Where a strike is aimed, by its weight; half of them at a save (`stage`: files are written; `pointer`: renamed)."""

WITHIN_S = {"start-up": 12.0, "conversion": 1.0, "step": 2.5, "stage": 0.12, "pointer": 0.006}
"""A strike comes at a random time from what it waits for on."""

CODES = {"rank 0": {76}, "rank 1": {76}, "launcher": {75, 76}, "wrapper": {-9}, "everything": {-9}}
"""With which our launcher may end.  75: the ranks saved."""

ALONE_S = 60.0
"""For ranks that find that our launcher was killed, which they do when they have started."""

MOST_MADE = 2
"""Steps that ranks finish after that: the one that they are at, and one that ended as the launcher did."""

MOST_LOST = 2
"""Steps: one that was being published, behind one that was being made."""


@dataclass(slots=True)
class Kill:
    """One strike, and what became of it."""

    target: str
    aim: str
    code: int | None = None  # of our launcher
    newest: str | None = None  # the checkpoint that was published by then
    lost: int = 0  # finished steps that are to be made again
    left: tuple[str, ...] = ()  # what a save under way left in the folder
    orphans: int = 0  # processes that outlived our launcher
    steps: int = 0  # finished when it came
    ended_s: float = 0.0  # from the strike to its end


class Chain:
    """A run of two ranks, by ZeRO-3, that is struck again and again.

    Args:
        folder: an empty one.
        chance: what decides where and when.
    """

    def __init__(self, folder: Path, chance: random.Random):
        self.folder, self.chance = folder, chance
        self.run, self.checkpoints = folder / "tiny", folder / "tiny" / "checkpoints"
        self.kills: list[Kill] = []
        self.unrecoverable: list[str] = []
        self.silent_restarts: list[str] = []
        self.orphaned: list[str] = []

    def draw(self) -> Kill:
        """Where the next strike is aimed."""
        (aim,) = self.chance.choices(list(AIMS), list(AIMS.values()))
        (target,) = self.chance.choices(list(TARGETS), list(TARGETS.values()))
        if aim == "conversion":
            if not (newest(self.run) or "").startswith("step-"):
                aim = "start-up"  # nothing to convert yet
            elif target == "rank 1":
                target = "rank 0"
        return Kill(target, aim)

    def struck_life(self, kill: Kill) -> bool:
        """A life that is to be struck; False where it reached its end before."""
        before = newest(self.run)
        ranks, copy = (1, self.folder / "before") if kill.aim == "conversion" else (2, None)
        if copy is not None:
            shutil.copytree(self.run, copy)
        life = Life(command(self.folder, *SAVING, "run.resume=auto", ranks=ranks), self.folder)
        struck = self._strike(life, kill, before)
        begun = time.monotonic()
        if struck and kill.target == "everything":
            life.sweep()
        kill.code, kill.ended_s = life.end(), round(time.monotonic() - begun, 1)
        left = life.outlive(ALONE_S if kill.target == "wrapper" else 0.0)
        self._check_start(life, before)
        if not struck:
            return False
        self._look_at(kill, life, left)
        self.kills.append(kill)
        if copy is not None:
            self._forget_updates_of_one_rank(copy, before)
        return True

    def _forget_updates_of_one_rank(self, copy: Path, before: str | None) -> None:
        """The strike may come when the conversion is over; what one rank makes is not what two do, bit for bit."""
        if newest(self.run) != before:
            shutil.rmtree(self.run)
            copy.rename(self.run)
        else:
            shutil.rmtree(copy)

    def last_life(self) -> None:
        """One that nobody strikes, to the end of the run."""
        before = newest(self.run)
        life = Life(command(self.folder, *SAVING, "run.resume=auto"), self.folder)
        code = life.end()
        if code != 0:
            self.unrecoverable.append(f"a life that nobody struck ended with {code}: {life.err[-600:]}")
        self._check_start(life, before)
        if left := sorted(path.name for path in self.checkpoints.glob(".*")):
            self.unrecoverable.append(f"left in the folder at the end: {left}")

    def _strike(self, life: Life, kill: Kill, before: str | None) -> bool:
        """Wait until it is time, then kill; False where the run ended before."""
        moment, victims = self._moment(kill.aim, before), []
        if kill.aim in ("step", "stage", "pointer"):
            begun = life.wait_for(lambda: life.resumed_from() or life.began_anew())
            victims = life.target(kill.target) if begun else []  # known by now: a look at all processes takes a while
        quick = kill.aim in ("stage", "pointer")
        if not life.wait_for(moment, every_s=0.0003 if quick else 0.02):
            return False
        time.sleep(self.chance.uniform(0, WITHIN_S[kill.aim]))
        victims = victims or life.target(kill.target)
        if not victims:  # it does not run yet
            kill.target, victims = "everything", life.processes()
        kill.steps = steps_in(self.run)
        return strike(victims, signal.SIGKILL) > 0

    def _moment(self, aim: str, before: str | None) -> Callable[[], object]:
        """What a strike waits for."""
        path = self.run / "metrics.jsonl"
        at_start = _inode(path)
        moments: dict[str, Callable[[], object]] = {
            "start-up": lambda: True,
            "conversion": (self.checkpoints / ".stage-scratch").exists,
            # A life that begins drops the lines of steps that it makes again, in a new file.
            "step": lambda: _inode(path) != at_start and steps_in(self.run) > steps_of(before),
            "stage": lambda: any(self.checkpoints.glob(".stage-*-*")),
            "pointer": lambda: any(self.checkpoints.glob(".stage-*/manifest.sha256")),  # written last
        }
        return moments[aim]

    def _check_start(self, life: Life, before: str | None) -> None:
        """It went on from the newest checkpoint, if it came so far."""
        if before is not None and life.began_anew():
            self.silent_restarts.append(f"{before} was there, and a life began from the start")
        if (resumed := life.resumed_from()) not in (None, before):
            self.unrecoverable.append(f"{before} was there, and a life went on from {resumed}: {life.out[:600]}")

    def _look_at(self, kill: Kill, life: Life, left: int) -> None:
        kill.newest = newest(self.run)
        kill.lost = max(steps_in(self.run) - steps_of(kill.newest), 0)
        kill.left = tuple(sorted(path.name for path in self.checkpoints.glob(".*")))
        complete = kill.target == "launcher" and kill.newest == f"step-{UPDATES:08d}"  # the ranks had ended well
        if kill.code not in CODES[kill.target] | ({0} if complete else set()):
            self.unrecoverable.append(f"{kill.target}, {kill.aim}: exit code {kill.code}: {life.err[-600:]}")
        if kill.lost > MOST_LOST:
            self.unrecoverable.append(f"{kill.target}, {kill.aim}: {kill.lost} steps were lost")
        if kill.target == "wrapper" and steps_in(self.run) > kill.steps + MOST_MADE:
            made = steps_in(self.run) - kill.steps
            self.unrecoverable.append(f"{kill.aim}: the ranks made {made} steps more without their launcher")
        if left:
            kill.orphans = left
            self.orphaned.append(f"{kill.target}, {kill.aim}: {left} processes outlived the launcher")


def _inode(path: Path) -> int | None:
    return path.stat().st_ino if path.exists() else None


@cache
def undisturbed(folder: Path) -> str:
    """The digest of the run that nobody strikes."""
    folder.mkdir()
    life = Life(command(folder, *SAVING), folder)
    if life.end() != 0:
        raise RuntimeError(f"the undisturbed run failed: {life.err}")
    return final_digest(folder / "tiny")


def chain(folder: Path, number: int, kills: int) -> Outcome:
    """So many kills of one run at most, its end, and what it ended with."""
    whole = undisturbed(folder / "whole")
    place = folder / f"chain-{number}"
    place.mkdir()
    lives = Chain(place, random.Random(f"kills, chain {number}"))
    while len(lives.kills) < kills and lives.struck_life(lives.draw()):
        pass
    lives.last_life()
    differs = final_digest(lives.run) != whole
    wrong = lives.unrecoverable + lives.silent_restarts + lives.orphaned + ["the final digest differs"] * differs
    if not wrong:
        shutil.rmtree(place)
    return {
        "kills": len(lives.kills),
        "unrecoverable": len(lives.unrecoverable),
        "silent_restarts": len(lives.silent_restarts),
        "digest_mismatches": int(differs),
        "orphans": sum(kill.orphans for kill in lives.kills),
        "wrong": wrong,
        "each": [asdict(kill) for kill in lives.kills],
    }


def kills(trials: Trials) -> None:
    """Chains until there are as many kills as are wanted."""
    number = 0
    while (missing := trials.kills - sum(line["kills"] for line in trials.of("kills"))) > 0:
        number += 1
        trials.make("kills", f"chain {number}", lambda: chain(trials.folder, number, min(missing, A_CHAIN)))  # noqa: B023
