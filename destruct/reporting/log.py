"""The figures of `metrics.jsonl`, by phase and name, of a run of any length and in any state."""

import json
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from destruct.progress import Tell, tell_nobody

Floats = npt.NDArray[np.float64]

LEFT_OUT = "curriculum/"
"""Most figures of a round are for `destruct explain`; these are shown here:"""
OF_A_ROUND = tuple(f"curriculum/{name}" for name in ("weight/", "difficulty/", "difficulty_se/", "round"))


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """One figure over the steps at which it was logged."""

    x: Floats  # (N,) steps
    y: Floats  # (N,) NaN where the log has null

    def __len__(self) -> int:
        return len(self.x)


@dataclass(slots=True)
class Log:
    """What a log holds."""

    columns: dict[tuple[str, str], tuple["array[float]", "array[float]"]] = field(default_factory=dict)
    updates: int = 0  # made so far
    rounds: int = 0
    damaged: int = 0  # lines that are not what a run writes
    torn: bool = False  # the last line is not whole: it is being written, or the run was killed as it was

    def series(self, name: str, phase: str = "ppo") -> Series:
        """Of one figure; empty where it was never logged."""
        x, y = self.columns.get((phase, name), (array("d"), array("d")))
        return Series(np.array(x), np.array(y))

    def family(self, prefix: str, phase: str = "ppo") -> dict[str, Series]:
        """Those whose names begin so, by the rest of their names, in the order of the alphabet."""
        names = sorted(name for of, name in self.columns if of == phase and name.startswith(prefix))
        return {name.removeprefix(prefix): self.series(name, phase) for name in names}

    def _add(self, entry: dict[str, Any]) -> None:
        """Raises ValueError, KeyError or TypeError where it is not what a run writes."""
        phase, step = str(entry["phase"]), float(int(entry["step"]))
        if "ppo/steps" in entry:
            self.updates = int(step) + 1
        self.rounds += "curriculum/round" in entry
        for name, value in entry.items():
            is_figure = value is None or (isinstance(value, int | float) and "/" in name)
            if not is_figure or (name.startswith(LEFT_OUT) and not name.startswith(OF_A_ROUND)):
                continue
            figure = np.nan if value is None else float(value)
            x, y = self.columns.setdefault((phase, name), (array("d"), array("d")))
            x.append(step)
            y.append(figure)


def read_log(path: Path, tell: Tell = tell_nobody) -> Log:
    """Read a `metrics.jsonl`; damaged lines are left out and counted.  One that is missing is empty.

    Args:
        tell: is told of the bytes that are read.

    Raises:
        OSError: it cannot be read.
    """
    log = Log()
    for entry, whole in entries(path, tell):
        try:
            if entry is None:
                raise ValueError("no JSON")
            log._add(entry)
        except (ValueError, KeyError, TypeError, OverflowError):
            log.damaged += whole
            log.torn = not whole
    return log


def entries(path: Path, tell: Tell = tell_nobody) -> Iterator[tuple[dict[str, Any] | None, bool]]:
    """Each line of a file of JSON objects: the object, None where it is none, and whether the line has an end.

    Raises:
        OSError: the file is there and cannot be read.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:  # bytes: text would also be split at the U+2028 of a sample
        tell(0, os.fstat(file.fileno()).st_size)
        for line in file:
            tell(len(line))
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                entry = None
            yield (entry if isinstance(entry, dict) else None), line.endswith(b"\n")
