"""A rank that is not what the others are: named by what differs; one that is slow: named, and nobody else ever."""

import json
import re
from pathlib import Path

from tests.faults.lives import ROOT, Life
from tests.faults.stalls import troubled
from tests.faults.trials import Outcome, Trials

EVERY = 2
DRIFTS = {
    "bit of a parameter": "policy",
    "bit of the sampling copy": "copy of the policy to sample from",
    "sampling weights": "vector of sampling weights",
    "KL coefficient": "KL coefficient",
    "steps": "number of steps",
    "learning rate": "pair of learning rates",
    "place in the data": "place in the data",
}
"""By fault the name of what differs."""

SLOW = r"rank (\d) is slow"


def drifts_apart(folder: Path, fault: str) -> Outcome:
    """Rank 1 of three drifts in the third update; they are compared at its end, before its checkpoint is written."""
    folder.mkdir()
    zero2 = json.loads((ROOT / "ds_configs" / "zero2.json").read_text(encoding="utf-8"))
    (folder / "zero2.json").write_text(json.dumps(zero2), encoding="utf-8")
    stage = [f"engine.deepspeed={folder / 'zero2.json'}"] if fault == "bit of a parameter" else []
    run = troubled(folder, fault, 1, "rollout.batch_size=24", *stage, ranks=3)
    code, orphans = run.end(), run.sweep()
    said = f"destruct: rank 1 has another {DRIFTS[fault]} than the other ranks"
    published = sorted(path.name for path in (folder / "tiny" / "checkpoints").glob("step-*"))
    wrong = [] if said in run.err else [f"not named: {run.err[-400:]}"]
    wrong += [] if f"deepspeed: rank 1 has another {DRIFTS[fault]}" in run.err else ["not named by the launcher"]
    wrong += [f"exit code {code}"] if code != 76 else []
    poisoned = int("step-00000003" in published)
    wrong += ["its checkpoint was published"] * poisoned
    return {
        "misnamed_ranks": int(said not in run.err),
        "orphans": orphans,
        "poisoned_checkpoints": poisoned,
        "wrong": [f"{fault}: {what}" for what in wrong],
    }


def is_slow(folder: Path, rank: int | None) -> Outcome:
    """Whoever is named in a run of twelve updates of which one rank samples slower by 0.7 s; nobody where none is."""
    how = ["run.num_epochs=4", f"guard.compare_every={EVERY * 2}"]
    run = troubled(folder, "slow" if rank is not None else "", rank or 0, *how)
    code, orphans = run.end(), run.sweep()
    named = re.findall(SLOW, run.out)
    right = set(named) == ({str(rank)} if rank is not None else set())
    wrong = [] if right else [f"named: {named}"]
    wrong += [f"exit code {code}: {run.err[-400:]}"] if code else []
    return {
        "misnamed_ranks": int(not right),
        "orphans": orphans,
        "wrong": [f"slow rank {rank}: {what}" for what in wrong],
    }


def other_config(folder: Path) -> Outcome:
    """Rank 1 is started with another clip range."""
    folder.mkdir()
    start = "import os, sys; sys.argv += ['ppo.clip_range=0.1'] if os.environ['RANK'] == '1' else []\n"
    start += "from destruct.train import enter; enter()\n"
    (folder / "start.py").write_text(start, encoding="utf-8")
    config = troubled_config(folder)
    run = Life(["deepspeed", "--num_gpus", "2", str(folder / "start.py"), "--config", config], folder)
    code, orphans = run.end(), run.sweep()
    said = "rank 1 was started with config.ppo.clip_range = 0.1, and rank 0 with 0.2" in run.err
    wrong = [] if said and code == 2 else [f"exit code {code}: {run.err[-400:]}"]
    return {"misnamed_ranks": int(not said), "orphans": orphans, "wrong": wrong}


def troubled_config(folder: Path) -> str:
    """Path of the tiny run's YAML."""
    from tests.tiny import write_config

    return str(write_config(folder))


def drift(trials: Trials) -> None:
    """Every figure that must be equal; another config; slow ranks, and none."""
    for fault in DRIFTS:
        place = trials.folder / f"drift-{fault.replace(' ', '-')}"
        trials.make("drift", fault, lambda: drifts_apart(place, fault))  # noqa: B023
    trials.make("drift", "config", lambda: other_config(trials.folder / "drift-config"))
    for rank in (0, 1, None):
        trials.make("drift", f"slow rank {rank}", lambda: is_slow(trials.folder / f"slow-{rank}", rank))  # noqa: B023
