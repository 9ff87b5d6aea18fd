"""A run as its folder tells of it: going on, done, stopped or killed, and whichever of its files are there."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from destruct import events
from destruct.checkpoint import finding
from destruct.claim import holder
from destruct.configuring import diff
from destruct.progress import Tell, tell_nobody
from destruct.reporting.log import Log, entries, read_log
from destruct.reporting.samples import Samples, read_samples

SETBACKS = "setbacks.jsonl"


@dataclass(frozen=True, slots=True)
class Recorded:
    """Everything that a report tells of."""

    folder: Path
    settings: diff.Side
    environment: dict[str, Any]  # empty where the file is missing or damaged
    summary: dict[str, Any] | None  # None until the run is done, and again once it goes on
    log: Log
    samples: Samples
    setbacks: list[dict[str, Any]]
    events: list[dict[str, Any]]
    checkpoints: list[str]  # names, oldest first
    best: str  # name of a checkpoint, or nothing
    holder: str | None  # process that writes the folder now

    @property
    def name(self) -> str:
        """Of the run."""
        return str(self.setting("run.name", self.folder.name))

    @property
    def planned(self) -> int | None:
        """PPO updates; None where that followed from the size of the data, and is not written down."""
        epochs, per_epoch = self.setting("run.num_epochs"), self.setting("run.updates_per_epoch")
        return epochs * per_epoch if isinstance(epochs, int) and isinstance(per_epoch, int) else None

    def setting(self, key: str, default: Any = None) -> Any:
        """A value of its resolved.yaml, by its dotted key."""
        return self.settings.values.get(key, default)

    def has(self, source: str) -> bool:
        """Whether a source is one of the run's, as it was last started."""
        return any(key.startswith(f"data.sources.{source}.") for key in self.settings.values)

    def number(self, key: str) -> float:
        """The same as a number; NaN where it is none."""
        value = self.setting(key)
        return float(value) if isinstance(value, int | float) else math.nan


def read(folder: Path, look: bool = True, tell: Tell = tell_nobody) -> Recorded:
    """Read a run's folder.

    Args:
        look: whether another process may be writing it, which is to be found out.  The process that writes it must
            not ask, as that would undo its own lock.
        tell: is told of the bytes of the two files that may be long.

    Raises:
        DestructError: its resolved.yaml is missing or damaged.
        OSError: a file cannot be read.
    """
    settings = diff.read(str(folder))
    seed = settings.values.get("run.seed")
    log = read_log(folder / "metrics.jsonl", tell)
    happened = [entry for entry, _ in entries(folder / events.FILE) if entry and "event" in entry]
    return Recorded(
        folder=folder,
        settings=settings,
        environment=_mapping(folder / "environment.json"),
        summary=_summary(folder, log, happened),
        log=log,
        samples=read_samples(folder / "samples.jsonl", seed if isinstance(seed, int) else 0, tell),
        setbacks=[entry for entry, _ in entries(folder / SETBACKS) if entry],
        events=happened,
        checkpoints=[path.name for path in reversed(finding.checkpoints(folder / "checkpoints"))],
        best=finding.name_in(folder / "checkpoints" / finding.BEST),
        holder=holder(folder) if look else None,
    )


def _summary(folder: Path, log: Log, happened: list[dict[str, Any]]) -> dict[str, Any] | None:
    """That of the end of the run; one that an earlier life left is none."""
    found = _mapping(folder / "summary.json")
    goes_on = bool(happened) and happened[-1]["event"] != events.FINISHED
    return None if not found or goes_on or found.get("updates") != log.updates else found


def _mapping(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
