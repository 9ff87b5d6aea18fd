"""What is not finite in one rank's reward, advantage, gradient or weight: dropped or set back, and never published."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.faults.stalls import troubled
from tests.faults.trials import Outcome, Trials

PASSING = ("nan in a reward", "nan in an advantage", "nan in a gradient")
HOW = ["run.resume=auto", "run.keep_checkpoints=9", "run.num_epochs=3"]
UPDATES = 9


def poisoned(run_folder: Path) -> list[str]:
    """Published checkpoints in which a number is not finite."""
    found = sorted((run_folder / "checkpoints").glob("*-*/manifest.json"))
    return [path.parent.name for path in found if not all(map(_is_finite, _tensors(path.parent)))]


def _is_finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _tensors(checkpoint: Path) -> Iterator[torch.Tensor]:
    for path in checkpoint.rglob("*.safetensors"):
        yield from load_file(path).values()
    for path in checkpoint.rglob("*.pt"):
        yield from _within(torch.load(path, map_location="cpu", weights_only=False))


def _within(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _within(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _within(each)


def ended(run_folder: Path) -> dict:
    """The state of the newest checkpoint."""
    newest = max((run_folder / "checkpoints").glob("step-*"))
    return json.loads((newest / "state.json").read_text(encoding="utf-8"))


def poison_once(folder: Path, fault: str, rank: int) -> Outcome:
    """In the third update alone, in the run's first life: its steps are dropped, or the run is set back by itself."""
    run = troubled(folder, fault, rank, *HOW)
    code, orphans = run.end(), run.sweep()
    state, bad = ended(folder / "tiny"), poisoned(folder / "tiny")
    lives = run.err.count("the run starts again, from its last checkpoint") + 1
    wrong = [] if (folder / "begun").exists() else ["the fault did not come"]
    wrong += [f"exit code {code}: {run.err[-600:]}"] if code else []
    wrong += [f"{bad} were published"] if bad else []
    wrong += [f"ended after update {state['update']}"] if state["update"] != UPDATES else []
    if fault in PASSING:
        wrong += [f"{state['skipped']} steps dropped, {lives} lives"] if not state["skipped"] or lives != 1 else []
        # Whitening spreads a reward's to all ranks, and only the norm tells of a gradient's.
        named = f"the loss of rank {rank}" in run.out or fault != "nan in an advantage"
        wrong += [] if named else [f"rank {rank} is not named: {run.out[-600:]}"]
    else:
        wrong += [f"{lives} lives instead of 2"] if lives != 2 else []
        wrong += [] if f"policy on rank {rank}" in run.err else [f"rank {rank} is not named: {run.err[-600:]}"]
    return {
        "orphans": orphans,
        "poisoned_checkpoints": len(bad),
        "lives": lives,
        "skipped": state["skipped"],
        "wrong": [f"{fault}, rank {rank}: {what}" for what in wrong],
    }


def poison_for_ever(folder: Path) -> Outcome:
    """In every life: after guard.restarts of them it ends with 77."""
    run = troubled(folder, "nan in a weight", 1, *HOW, "guard.restarts=2", FAULTS_AGAIN="1")
    code, orphans = run.end(), run.sweep()
    bad, lives = poisoned(folder / "tiny"), run.err.count("the run starts again, from its last checkpoint") + 1
    wrong = [] if (code, lives) == (77, 3) else [f"exit code {code} after {lives} lives: {run.err[-600:]}"]
    wrong += [f"{bad} were published"] if bad else []
    return {"orphans": orphans, "poisoned_checkpoints": len(bad), "lives": lives, "wrong": wrong}


def poison(trials: Trials) -> None:
    """Each kind, on either rank."""
    for fault in (*PASSING, "nan in a weight"):
        for rank in (0, 1):
            place = trials.folder / f"{fault.replace(' ', '-')}-{rank}"
            trials.make("poison", f"{fault}, rank {rank}", lambda: poison_once(place, fault, rank))  # noqa: B023
    trials.make("poison", "nan in a weight, in every life", lambda: poison_for_ever(trials.folder / "for-ever"))
