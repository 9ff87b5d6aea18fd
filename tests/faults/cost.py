"""What safety costs: verifying beside loading, saving beside training, and what is left under a failure every 30 s.

Timings, which are told and never judged: ratios of medians, of turns that alternate.
"""

import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from tests.distributed.launching import ROOT, torchrun
from tests.faults import bare
from tests.faults.lives import Life, command, strike
from tests.faults.trials import Outcome, Trials

TURNS = 3
PHASES = ("round", "data", "generate", "score", "update", "kl", "evaluate", "compare", "checkpoint")
FAILURE_EVERY_S = 30.0
UPDATES, STEPS = 60, 240
"""Of a run of ours and of the bare loop, whose seconds are compared with and without failures."""


def verification(folder: Path) -> Outcome:
    """Seconds of verifying and of loading one checkpoint, by two ranks, from the page cache and from the disk."""
    folder.mkdir()
    life = Life(torchrun(2, str(ROOT / "tests" / "faults" / "cost_worker.py"), str(folder)), folder)
    if life.end() != 0:
        raise RuntimeError(life.err)
    seconds = json.loads((folder / "seconds.json").read_text(encoding="utf-8"))
    shutil.rmtree(folder)
    size = seconds.pop("bytes")
    return {"mib": round(size / 2**20)} | {f"{name}_s": median(each) for name, each in seconds.items()}


def of_updates(folder: Path, *overrides: str) -> list[dict[str, float]]:
    """Seconds of each update but the first ones, by phase."""
    folder.mkdir()
    life = Life(command(folder, "run.num_epochs=1", "run.updates_per_epoch=15", *overrides), folder)
    if life.end() != 0:
        raise RuntimeError(life.err)
    lines = [json.loads(line) for line in (folder / "tiny" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    updates = [line for line in lines if "ppo/steps" in line]
    shutil.rmtree(folder)
    return [{name: line[f"time/{name}"] for name in PHASES if f"time/{name}" in line} for line in updates[3:]]


def saving(folder: Path) -> Outcome:
    """Seconds of an update in runs that save after each, and in runs that do not."""
    seconds: dict[int, list[float]] = {0: [], 1: []}
    for _ in range(TURNS):
        for every, found in seconds.items():
            found += [sum(each.values()) for each in of_updates(folder, f"run.checkpoint_every={every}")]
    return {"without_s": median(seconds[0]), "with_s": median(seconds[1])}


def comparing(folder: Path) -> Outcome:
    """Seconds of an update, and of holding the ranks against each other after it."""
    updates = of_updates(folder, "guard.compare_every=1")
    compared = median(each.pop("compare") for each in updates)
    return {"compare_s": compared, "update_s": median(sum(each.values()) for each in updates)}


def goodput(folder: Path, start: Callable[[], Life], struck: bool) -> float:
    """Seconds until a run has ended, started again as soon as all of it is killed."""
    begun = time.monotonic()
    while True:
        life = start()
        until = time.monotonic() + FAILURE_EVERY_S
        while not life.is_over and (not struck or time.monotonic() < until):
            time.sleep(0.05)
        if life.is_over:
            if life.process.returncode != 0:
                raise RuntimeError(f"it failed by itself in {folder}: {life.err}")
            return time.monotonic() - begun
        strike(life.processes(), signal.SIGKILL)
        life.sweep()


def under_failures(folder: Path, ours: bool) -> Outcome:
    """One run in peace, then one of which everything is killed every 30 s."""
    seconds = []
    for struck in (False, True):
        place = folder / f"{'ours' if ours else 'bare'}-{struck}"
        place.mkdir(parents=True)
        plan = [f"run.num_epochs={UPDATES // 3}", "run.checkpoint_every=1", "run.resume=auto"]

        def start(place: Path = place, plan: list[str] = plan) -> Life:
            return Life(command(place, *plan), place) if ours else bare.loop(place, STEPS)

        seconds.append(goodput(place, start, struck))
        shutil.rmtree(place)
    return {"clean_s": seconds[0], "struck_s": seconds[1]}


def cost(trials: Trials) -> None:
    """All of them."""
    place = trials.folder / "cost"
    trials.make("cost", "verification", lambda: verification(place))
    trials.make("cost", "saving", lambda: saving(place))
    trials.make("cost", "comparing", lambda: comparing(place))
    for ours in (True, False):
        name = "a failure every 30 s" + ("" if ours else ", bare")
        trials.make("cost", name, lambda: under_failures(place, ours))  # noqa: B023
