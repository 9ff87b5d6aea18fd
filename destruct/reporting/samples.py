"""What the model said: the continuations of the person's prompts, and a few rollouts of each source."""

import math
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from destruct.progress import Tell, tell_nobody
from destruct.reporting.log import entries

MOST_BETWEEN = 6
"""Continuations of a prompt that are shown between the first ones and the last."""

KEPT = 3
"""Random rollouts of a source that are held while its file is read, so that one is neither the best nor the worst."""

WHEN = {"before": "before training", "after_warmup": "after the warm-up"}
"""Phases of a validation that is not of PPO -> when it was."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled response."""

    update: int
    source: str
    prompt: str
    response: str
    continuation: str  # the data's own; empty where it has none
    stopped: bool
    reward: float
    terms: dict[str, float]  # before their weights
    kl: float  # to the reference, as the sample has it; NaN where it was not written down


@dataclass(slots=True)
class OfSource:
    """The rollouts of a source that are shown."""

    count: int = 0  # that were written down
    best: Rollout | None = None
    worst: Rollout | None = None
    some: list[Rollout] = field(default_factory=list)  # at random

    def add(self, rollout: Rollout, chance: random.Random) -> None:
        """Let it be one of those that are shown, if it is: each is equally likely to be among `some`."""
        self.count += 1
        if self.best is None or rollout.reward > self.best.reward:
            self.best = rollout
        if self.worst is None or rollout.reward < self.worst.reward:
            self.worst = rollout
        if len(self.some) < KEPT:
            self.some.append(rollout)
        elif (place := chance.randrange(self.count)) < KEPT:
            self.some[place] = rollout

    def shown(self) -> list[tuple[str, Rollout]]:
        """What each is -> it; none is there twice."""
        if self.best is None or self.worst is None:
            return []
        found = [("best", self.best)]
        if self.worst is not self.best:
            found.append(("worst", self.worst))
        others = [rollout for rollout in self.some if rollout is not self.best and rollout is not self.worst]
        return found + [("random", rollout) for rollout in others[:1]]


@dataclass(frozen=True, slots=True)
class Said:
    """A continuation of a prompt."""

    when: str
    text: str


@dataclass(slots=True)
class Samples:
    """What a run's `samples.jsonl` holds."""

    sources: dict[str, OfSource] = field(default_factory=dict)
    prompts: dict[tuple[str, str], list[Said]] = field(default_factory=dict)  # topic and prompt -> in their order
    damaged: int = 0
    torn: bool = False  # the last line is not whole

    def _add(self, entry: dict[str, Any], chance: random.Random) -> None:
        """Raises ValueError, KeyError, TypeError or AttributeError where it is not what a run writes."""
        if "source" not in entry:
            phase = entry["phase"]
            when = WHEN.get(phase) or f"after {int(entry['update']) + 1} updates"
            self.prompts.setdefault((str(entry["topic"]), str(entry["prompt"])), []).append(
                Said(when, str(entry["response"]))
            )
            return
        rollout = Rollout(
            update=int(entry["update"]),
            source=str(entry["source"]),
            prompt=str(entry["prompt"]),
            response=str(entry["response"]),
            continuation=str(entry.get("continuation") or ""),
            stopped=bool(entry.get("stopped")),
            reward=_number(entry["reward"]),
            terms={str(name): _number(value) for name, value in entry.get("terms", {}).items()},
            kl=_number(entry.get("kl")),
        )
        if math.isfinite(rollout.reward):
            self.sources.setdefault(rollout.source, OfSource()).add(rollout, chance)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def read_samples(path: Path, seed: int, tell: Tell = tell_nobody) -> Samples:
    """Read a `samples.jsonl` and keep what is shown; damaged lines are left out and counted.

    Args:
        seed: of what is random.
        tell: is told of the bytes that are read.

    Raises:
        OSError: it cannot be read.
    """
    samples, chance = Samples(), random.Random(seed)
    for entry, whole in entries(path, tell):
        try:
            if entry is None:
                raise ValueError("no JSON")
            samples._add(entry, chance)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            samples.damaged += whole
            samples.torn = not whole
    return samples


def chosen(said: list[Said]) -> tuple[list[Said], list[Said]]:
    """Continuations of one prompt: those side by side, from before PPO and the last, and some in between."""
    first = [entry for entry in said[:-1] if entry.when in WHEN.values()]
    beside = [*(first or said[:1]), *said[-1:]] if len(said) > 1 else said
    between = [entry for entry in said[:-1] if not any(entry is other for other in beside)]
    stride = -(-len(between) // MOST_BETWEEN) or 1
    return beside, between[::stride]
