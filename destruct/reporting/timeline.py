"""What happened in a run, and when: starts, resumes, stops, set-backs, breaches, dropped steps, rounds."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from destruct import events
from destruct.reporting.drawing import PLANE, Tick
from destruct.reporting.log import Series
from destruct.reporting.recorded import Recorded
from destruct.reporting.scales import full, short, tick_words, ticks

LISTED = 80
"""Events that are told in words, of those that matter."""

QUIET = ("round", "early stop", "checkpoint")
"""Kinds of which there are too many for that."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened."""

    kind: str
    update: int  # made before it
    words: str
    time: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """All events of a kind, on the axis of the updates."""

    kind: str
    count: int
    d: str  # an SVG path of strokes


@dataclass(frozen=True, slots=True)
class Timeline:
    """What the page shows of the events."""

    rows: list[Row]
    x_ticks: list[Tick]
    listed: list[Event]
    left_out: int
    description: str


def timeline(run: Recorded) -> Timeline:
    """All events of a run, by kind and in their order."""
    lives, logged = list(_lives(run)), list(_from_log(run))
    kinds = list(dict.fromkeys(event.kind for event in [*lives, *logged]))
    found = sorted([*logged, *lives], key=lambda event: event.update)  # what an update logged came before a stop
    end = max([run.log.updates, 1, *(event.update for event in found)])
    rows = []
    for kind in kinds:
        updates = np.array([event.update for event in found if event.kind == kind])
        places = np.unique(np.round(updates / end * PLANE[0] / 2).astype(int) * 2)  # two of a pixel are one
        rows.append(Row(kind, len(updates), "".join(f"M{place} 150v700" for place in places)))
    told = [event for event in found if event.kind not in QUIET]
    xs = ticks(0.0, float(end), 5)
    axis = [Tick(100 * x / end, word) for x, word in zip(xs, tick_words(xs), strict=True) if x == int(x)]
    counts = ", ".join(f"{row.kind}: {row.count}" for row in rows)
    return Timeline(rows, axis, told[:LISTED], max(0, len(told) - LISTED), f"Events over {end} updates. {counts}.")


def _lives(run: Recorded) -> Iterator[Event]:
    for entry in run.events:
        name = str(entry.get("checkpoint") or "").rpartition("/")[2]
        time, what = str(entry.get("time", "")).replace("T", " ").replace("+00:00", " UTC"), entry["event"]
        if what == events.FINISHED:
            yield Event(what, _count(entry.get("updates")), "the last update was made", time)
        elif what == events.STOPPED:
            yield Event(what, _updates(name), f"by {entry.get('by')}; {name} is saved", time)
        elif what in (events.STARTED, events.RESUMED):
            overrides = " ".join(map(str, entry.get("overrides") or [])) or "no overrides"
            start = f"from {entry['checkpoint']}" if name else "from the beginning"
            where = f"{entry.get('world_size')} × {entry.get('device')}"
            yield Event(what, _updates(name), f"{start}, on {where}; {overrides}", time)
    for entry in run.setbacks:
        words = f"not finite: {entry.get('why')}; back to {entry.get('to')}"
        yield Event("set back", _count(entry.get("update")), words)


def _count(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _updates(checkpoint: str) -> int:
    """Updates behind a checkpoint, by its name."""
    kind, _, number = checkpoint.partition("-")
    return int(number[:8]) if kind == "step" and number[:8].isdecimal() else 0


def _from_log(run: Recorded) -> Iterator[Event]:
    log, bound = run.log, run.number("kl.bound")
    kl = log.series("kl/to_reference")
    for x, y in _where(kl, ~(kl.y <= bound)):
        yield Event("KL beyond its bound", int(x) + 1, f"{short(y)} after the update, bound {short(bound)}")
    skipped = log.series("ppo/skipped")
    for x, y in _where(skipped, skipped.y > 0):
        yield Event("dropped steps", int(x) + 1, f"{full(y)} optimizer steps were not finite")
    steps, planned = log.series("ppo/steps"), log.series("ppo/steps_planned")
    if len(steps) == len(planned) == len(skipped):
        for x, y in _where(steps, steps.y + skipped.y < planned.y):
            yield Event("early stop", int(x) + 1, f"after {full(y)} steps")
    best, means = np.inf, log.series("validation/mean")
    for x, y in zip(means.x, means.y, strict=True):
        if y < best:
            best = float(y)
            yield Event("best validation", int(x) + 1, f"{short(best)} nats per token")
    for x in log.series("curriculum/round").x:
        yield Event("round", int(x), "")
    for name in run.checkpoints:
        yield Event("checkpoint", _updates(name), name)


def _where(series: Series, holds: np.ndarray) -> Iterator[tuple[float, float]]:
    yield from zip(series.x[holds].tolist(), series.y[holds].tolist(), strict=True)
