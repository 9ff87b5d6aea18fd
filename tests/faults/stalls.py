"""A rank that hangs, wherever and however: named in time, its stacks written, nothing left running."""

import re
import time
from pathlib import Path

from tests.faults.lives import Life, command
from tests.faults.trials import Outcome, Trials

STALL_S = 5.0
LATE = r"nothing has gone on for \S+ s: rank (\d)"
HANGS = {
    "reward sleeps": "never_returns",
    "reward keeps the interpreter": "keeps_the_interpreter",
    "stopped in the reward": None,
    "stopped before a collective": None,
    "data read sleeps": "never_returns",
    "forward sleeps": "never_returns",
    "signal handler sleeps": "never_returns",
    "save sleeps": "never_returns",
}
"""By fault the function on whose stack the late rank is; a stopped process writes none."""


def troubled(folder: Path, fault: str, rank: int, *how: str, ranks: int = 2, **variables: str) -> Life:
    """A life of which a rank goes wrong in the third update."""
    folder.mkdir(parents=True, exist_ok=True)
    overrides = ["reward.terms={'tests.faults.trouble:quiet': 1.0}", "run.checkpoint_every=1", *how]
    known = {"FAULTS_FAULT": fault, "FAULTS_RANK": str(rank), "FAULTS_BEGUN": str(folder / "begun")}
    return Life(command(folder, *overrides, ranks=ranks), folder, **known, **variables)


def hang(folder: Path, fault: str, rank: int) -> Outcome:
    """Seconds from the hang to its name, and what is wrong with how it ended."""
    run = troubled(folder, fault, rank, f"guard.stall_s={STALL_S}")
    run.wait_for((folder / "begun").exists)
    begun = time.monotonic()
    run.wait_for(lambda: re.search(LATE, run.err))
    named_s = time.monotonic() - begun
    code, orphans = run.end(), run.sweep()
    late = re.findall(LATE, run.err)
    function = HANGS[fault]
    log = (folder / "tiny" / "logs" / f"rank-{rank}.log").read_text(encoding="utf-8")
    other = (folder / "tiny" / "logs" / f"rank-{1 - rank}.log").read_text(encoding="utf-8")
    wrong = [f"{late} was named, not {rank}"] if late != [str(rank)] else []
    wrong += [f"after {named_s:.1f} s"] if named_s > 2 * STALL_S else []
    wrong += [f"exit code {code}"] if code != 76 else []
    wrong += ["no stack of where it hangs"] if function and f"in {function}" not in log else []
    wrong += ["no stack of the other rank"] if "most recent call first" not in other else []
    return {
        "misnamed_ranks": int(late != [str(rank)]),
        "orphans": orphans,
        "named_s": round(named_s, 1),
        "wrong": [f"{fault}, rank {rank}: {what}" for what in wrong],
    }


def stalls(trials: Trials) -> None:
    """Every way to hang, on either rank."""
    for fault in HANGS:
        for rank in (0, 1):
            place = trials.folder / f"{fault.replace(' ', '-')}-{rank}"
            trials.make("stalls", f"{fault}, rank {rank}", lambda: hang(place, fault, rank))  # noqa: B023
