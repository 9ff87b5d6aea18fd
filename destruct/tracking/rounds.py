"""Reading a run's rounds back from `metrics.jsonl`, as `recording.record_round` wrote them, without torch."""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from destruct.curriculum.estimates import Estimates, Floats
from destruct.errors import DestructError

_COUNTS = {"round_index": "round", "batches": "batches"}
"""The fields of `Estimates` that are one number -> their names in the log."""


@dataclass(frozen=True, slots=True, eq=False)
class RecordedRound:
    """One round of the S sources `names`, and the weights that the run set in it."""

    update: int  # updates made before it
    names: tuple[str, ...]
    estimates: Estimates
    weights: Floats  # (S,) share of the tokens that are drawn next; 0 of an exhausted source
    target: Floats  # (S,) share that the estimates argued for
    stability_margin: float  # NaN where it is not known
    panel_size: int  # held-out windows per source
    probe_share: float  # tokens scored by rounds so far per token trained on

    @property
    def index(self) -> int:
        """0 for the run's first round."""
        return self.estimates.round_index


@dataclass(frozen=True, slots=True)
class Recording:
    """What a log holds."""

    rounds: list[RecordedRound]
    damaged: int  # lines that are no JSON, or a round that lacks a figure
    updates: int  # made so far


def read_rounds(path: Path) -> Recording:
    """The rounds of a `metrics.jsonl`, in their order; damaged lines are left out and counted.

    Raises:
        DestructError: the file cannot be read.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DestructError(
            f"{path} cannot be read: {error.strerror}", "name a run that has begun, by its folder or its name in runs/"
        ) from None
    rounds, damaged, updates = [], 0, 0
    for line in lines:
        is_round, is_update = b'"curriculum/round"' in line, b'"ppo/steps"' in line
        # Most lines of a long run are of neither kind; parsing them would take most of the time.
        if not (is_round or is_update) and line.startswith(b"{") and line.endswith(b"}"):
            continue
        try:
            entry = json.loads(line)
            if is_round:
                rounds.append(_round_from(entry))
            if is_update:
                updates = int(entry["step"]) + 1
        except (ValueError, KeyError, TypeError):
            damaged += 1
    return Recording(rounds, damaged, updates)


def _round_from(entry: dict[str, Any]) -> RecordedRound:
    """Raises ValueError, KeyError or TypeError where the line is no whole round."""
    prefix = "curriculum/difficulty/"
    names = tuple(name.removeprefix(prefix) for name in entry if name.startswith(prefix))
    if not names:
        raise ValueError("no source")

    def figures(field: str) -> Floats:
        # JSON has null for what is not finite: an error that is not known is infinite, any other figure not a number.
        unknown = math.inf if field.endswith("_se") else math.nan
        logged = [entry[f"curriculum/{field}/{name}"] for name in names]
        return np.array([unknown if x is None else x for x in logged], dtype=np.float64)

    margin = entry["curriculum/stability_margin"]
    values: dict[str, Any] = {
        field.name: int(entry[f"curriculum/{_COUNTS[field.name]}"]) if field.name in _COUNTS else figures(field.name)
        for field in dataclasses.fields(Estimates)
    }
    return RecordedRound(
        update=int(entry["step"]),
        names=names,
        estimates=Estimates(**values),
        weights=figures("weight"),
        target=figures("target"),
        stability_margin=math.nan if margin is None else float(margin),
        panel_size=int(entry["curriculum/panel_size"]),
        probe_share=float(entry["curriculum/probe_share"]),
    )
