"""Asked to stop in every phase of a run, by every signal, through the launcher and past it."""

import random
import shutil
import signal
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from tests.faults.lives import SAVING, Life, command, final_digest, newest, steps_of, strike
from tests.faults.trials import Outcome, Trials
from tests.faults.watcher import ANNOUNCED, PHASE, PHASES

HOW = [*SAVING, "reward.terms={'tests.faults.watcher:vowels': 1.0}", "run.resume=auto"]
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
TARGETS = ("wrapper", "rank 1", "all ranks")
START_UP = "start-up"
LATEST_S = 8.0
"""A start-up is struck within so many seconds of its first rank."""

IN_TIME_S = 30.0
"""Slurm kills a job so long after SIGTERM."""

NOT_YET = {"wrapper": {75, 130}, "rank 1": {75, 76, 130}, "all ranks": {75, 76, 130}}
"""Before a rank listens, Ctrl-C ends it as it ends any program, and so does a signal that comes past the launcher."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One signal, and what became of it."""

    phase: str
    code: int | None
    ended_s: float  # from the signal to the end of the launcher
    newest: str | None  # checkpoint afterwards
    orphans: int


def life(folder: Path, phase: str, target: str, number: signal.Signals, chance: random.Random) -> tuple[Asked, Life]:
    """A life that is asked to stop in a phase."""
    announced = folder / f"in-{phase.replace(' ', '-')}"
    variables = {} if phase == START_UP else {PHASE: phase, ANNOUNCED: str(announced)}
    run = Life(command(folder, *HOW), folder, **variables)
    run.wait_for(lambda: len(run.ranks()) == 2)
    victims = run.target(target)
    if phase == START_UP:
        time.sleep(chance.uniform(0, LATEST_S))
    else:
        run.wait_for(announced.exists, every_s=0.001)
    begun = time.monotonic()
    strike(victims, number)
    code = run.end()
    return Asked(phase, code, round(time.monotonic() - begun, 1), newest(folder / "tiny"), run.sweep()), run


def wrong_with(asked: Asked, run: Life, before: str | None, target: str) -> str | None:
    """None where it was in time, lost nothing and said so."""
    if asked.orphans:
        return f"{asked.orphans} processes outlived the launcher"
    if asked.ended_s > IN_TIME_S:
        return f"it took {asked.ended_s} s"
    if asked.phase == START_UP:
        fine = asked.code in NOT_YET[target] and asked.newest == before
    elif asked.phase == "resume":  # which may have ended when it came
        fine = asked.code == 75 and (asked.newest == before or "is saved" in run.err)
    else:
        fine = asked.code == 75 and steps_of(asked.newest) >= steps_of(before) and "is saved" in run.err
    if run.resumed_from() not in (None, before) or (before is not None and run.began_anew()):
        return f"it went on from {run.resumed_from()} instead of {before}"
    return None if fine else f"exit code {asked.code}, {before} and then {asked.newest}: {run.err[-600:]}"


@cache
def undisturbed(folder: Path) -> str:
    """The digest of the run that nobody asks to stop."""
    folder.mkdir()
    run = Life(command(folder, *HOW), folder)
    if run.end() != 0:
        raise RuntimeError(f"the undisturbed run failed: {run.err}")
    return final_digest(folder / "tiny")


def through_all_phases(folder: Path, number: signal.Signals, target: str) -> Outcome:
    """A run that is asked to stop once in each phase, and ends as if it never was."""
    whole = undisturbed(folder / "unasked")
    place = folder / f"{number.name}-{target.replace(' ', '-')}"
    place.mkdir()
    chance, wrong, all_asked = random.Random(f"signals, {place.name}"), [], []
    # A resume can only be struck where there is something to resume from.
    first = [START_UP, "policy warm-up", "resume"]
    for phase in [*first, *(phase for phase in PHASES if phase not in first)]:
        before = newest(place / "tiny")
        asked, run = life(place, phase, target, number, chance)
        all_asked.append(asked)
        if words := wrong_with(asked, run, before, target):
            wrong.append(f"{number.name}, {target}, {phase}: {words}")
    last = Life(command(place, *HOW), place)
    if last.end() != 0:
        wrong.append(f"the last life ended with {last.process.returncode}: {last.err[-600:]}")
    differs = final_digest(place / "tiny") != whole
    if not wrong and not differs:
        shutil.rmtree(place)
    return {
        "signals": len(all_asked),
        "orphans": sum(asked.orphans for asked in all_asked),
        "unrecoverable": len(wrong),
        "digest_mismatches": int(differs),
        "wrong": wrong + ["the final digest differs"] * differs,
        "each": [asdict(asked) for asked in all_asked],
    }


def signals(trials: Trials) -> None:
    """Every signal, at every target, in every phase."""
    for number in SIGNALS:
        for target in TARGETS:
            trials.make(
                "signals",
                f"{number.name}, {target}",
                lambda: through_all_phases(trials.folder, number, target),  # noqa: B023
            )
