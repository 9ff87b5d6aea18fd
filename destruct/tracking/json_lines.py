"""metrics.jsonl and samples.jsonl: what other programs read, and whoever looks without any."""

import dataclasses
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from destruct.durable import writing_to
from destruct.tracking.sinks import Continuation, Sample, Sink
from destruct.tracking.summary import null_unless_finite


class JsonLines(Sink):
    """One line for each call, with null for what is not finite.  Histograms are left to sinks that draw them.

    Args:
        folder: the run's folder.
        done: first step to come of each phase; the lines of it, and of later ones, from before a resume are dropped.

    Raises:
        DestructError: the folder cannot be written, here or in what is called later.
    """

    def __init__(self, folder: Path, done: dict[str, int]):
        self._folder = folder
        with writing_to(folder):
            self._metrics = _reopen(folder / "metrics.jsonl", "step", done)
            self._samples = _reopen(folder / "samples.jsonl", "update", done)

    def scalars(self, phase: str, step: int, values: dict[str, float]) -> None:
        """One line of metrics.jsonl."""
        self._write(self._metrics, {"phase": phase, "step": step, **values})

    def samples(self, step: int, samples: list[Sample]) -> None:
        """A line of samples.jsonl for each."""
        for sample in samples:
            self._write(self._samples, {"update": step, **dataclasses.asdict(sample)})

    def continuation(self, phase: str, step: int, said: Continuation) -> None:
        """A line of samples.jsonl."""
        self._write(self._samples, {"phase": phase, "update": step, **dataclasses.asdict(said)})

    def close(self) -> None:
        """Close both files."""
        for file in (self._metrics, self._samples):
            with suppress(OSError):
                file.close()

    def _write(self, file: TextIO, fields: dict[str, Any]) -> None:
        with writing_to(self._folder):
            file.write(json.dumps(null_unless_finite(fields), ensure_ascii=False, allow_nan=False) + "\n")
            file.flush()


def _reopen(path: Path, counter: str, done: dict[str, int]) -> TextIO:
    """Append to a file of JSON lines, without those of steps that are to come again (or its broken last line).

    Args:
        counter: the key of a line that counts the steps of its phase.
    """
    kept = []
    # Bytes: text would also be split at the U+2028 of a sample, and a line may have broken off inside a character.
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if entry[counter] < done.get(entry.get("phase", "ppo"), 0):
            kept.append(line + b"\n")
    staged = path.with_suffix(".staged")
    staged.write_bytes(b"".join(kept))
    os.replace(staged, path)
    return path.open("a", encoding="utf-8")
