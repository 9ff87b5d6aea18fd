"""Checkpoints of a run: staged, voted on by all ranks, sealed, renamed once, then pointed to."""

import json
import os
import re
import shutil
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from destruct.checkpoint import finding, manifest
from destruct.checkpoint.finding import BEST, LATEST
from destruct.engine.topology import Topology
from destruct.errors import DestructError
from destruct.exits import Exit

LINE = "line"
"""Key of a manifest: names of the checkpoints that this run has gone through and kept, oldest first, to this one."""


class CheckpointStore:
    """The `checkpoints/` folder of a run.

    Args:
        folder: that folder; made at the first save.
        keep: newest checkpoints that stay, besides the best.
    """

    def __init__(self, folder: Path, topology: Topology, keep: int):
        self.folder, self.topology, self.keep = folder, topology, keep

    def path(self, update: int) -> Path:
        """Where the checkpoint after `update` updates lies."""
        return self.folder / f"step-{update:08d}"

    def holds(self, checkpoint: Path | None) -> bool:
        """Whether what `latest` or `named` found is one of this folder."""
        return checkpoint is not None and checkpoint.parent == self.folder

    def save(
        self, update: int, writers: Sequence[Callable[[Path], None]], facts: dict[str, Any], best: bool = False
    ) -> Path | None:
        """Let all ranks write into one stage and publish it as step-XXXXXXXX.

        Args:
            writers: called with the stage, one after the other, each by all ranks.
            facts: what identifies the checkpoint, for its manifest.
            best: the pointer `best` is to name it, too.

        Returns:
            The checkpoint, or None when the disk failed a rank: then no stage is left and the run goes on.
        """
        final = self.path(update)
        stage = self.folder / f".stage-{update:08d}"
        first = self.topology.first_rank_makes
        written = first(lambda: _tried(lambda: _empty(stage)))
        for write in writers:
            # A vote after each: engines meet in a barrier when they save, and a rank that failed must not miss one.
            written = written and self.topology.all_agree(_tried(partial(write, stage)))
        if written and first(lambda: _tried(lambda: self._publish(stage, final, {"update": update, **facts}, best))):
            return final
        first(lambda: self._give_up(stage))
        return None

    def _publish(self, stage: Path, final: Path, facts: dict[str, Any], best: bool) -> None:
        line = [*(name for name in self._line() if name != final.name), final.name]
        manifest.seal(stage, {**facts, LINE: line})
        pointers = [self.folder / name for name in ((LATEST, BEST) if best else (LATEST,))]
        # A disk that is full is so here at the latest: from the first rename on, nothing is written any more.
        asides = [_write_aside(pointer, final.name) for pointer in pointers]
        shutil.rmtree(final, ignore_errors=True)
        os.rename(stage, final)
        manifest.sync(self.folder)
        for aside, pointer in zip(asides, pointers, strict=True):
            os.rename(aside, pointer)
        manifest.sync(self.folder)
        stay = {*line[-self.keep :], finding.name_in(self.folder / BEST)}
        for name in set(line) - stay:
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def _line(self) -> list[str]:
        """What the latest checkpoint's manifest says of LINE, as far as it is there.

        A life that was given up when the run was set back is not on it: its checkpoints stay, and do not count.
        """
        try:
            text = (self.folder / finding.name_in(self.folder / LATEST) / manifest.NAME).read_text(encoding="utf-8")
            line = json.loads(text)[LINE]
        except (OSError, ValueError, KeyError):
            return []
        return [name for name in line if re.fullmatch(r"step-\d{8}", name) and (self.folder / name).is_dir()]

    def _give_up(self, stage: Path) -> None:
        shutil.rmtree(stage, ignore_errors=True)
        for pointer in (LATEST, BEST):
            with suppress(OSError):
                _aside(self.folder / pointer).unlink(missing_ok=True)

    def latest(self) -> tuple[Path, dict[str, Any]] | None:
        """The checkpoint that the pointer names, verified file by file, with its manifest; None when there is none.

        Raises:
            DestructError: it is damaged, or `latest` is missing or names something else.
        """

        def find() -> tuple[Path, dict[str, Any]] | None:
            found = finding.latest(self.folder)
            return None if found is None else (found, _verified(found))

        return self.topology.first_rank_makes(find)

    def named(self, path: Path) -> tuple[Path, dict[str, Any]]:
        """The checkpoint that a person means by `path`, verified file by file, with its manifest.

        Raises:
            DestructError: it is damaged or cannot be read, or there is none.
        """

        def find() -> tuple[Path, dict[str, Any]]:
            try:
                found = self._as_ours(finding.named(path))
                return found, _verified(found)
            except OSError as error:
                raise DestructError(
                    f"run.resume: {error.filename or path} cannot be read: {error.strerror}", "make it readable"
                ) from None

        return self.topology.first_rank_makes(find)

    def _as_ours(self, checkpoint: Path) -> Path:
        """Its path as `self.path` has it where it lies in this folder, however it was named, else the resolved one."""
        home, place = self.folder.resolve(), checkpoint.resolve()
        for known in (place, checkpoint.parent.resolve() / checkpoint.name):
            if known.parent == home and known.name.startswith("step-"):
                return self.folder / known.name
        if home.parent in place.parents:
            raise DestructError(
                f"run.resume: {checkpoint} lies in this run's own folder, but not as checkpoints/step-XXXXXXXX",
                f"move it there, or out of {self.folder.parent}",
            )
        return place

    def stand_at(self, checkpoint: Path, best: Path | None) -> None:
        """Let both pointers agree with a run that goes on from one of these checkpoints.

        Args:
            best: the best one at that time; None when it does not lie here.

        Raises:
            DestructError: the folder cannot be written.
        """
        names = {LATEST: checkpoint.name, BEST: best.name if best else ""}

        def point() -> None:
            for pointer, name in ((self.folder / key, name) for key, name in names.items()):
                if not name:
                    pointer.unlink(missing_ok=True)
                elif finding.name_in(pointer) != name:
                    os.rename(_write_aside(pointer, name), pointer)
            manifest.sync(self.folder)

        if not self.topology.first_rank_makes(lambda: _tried(point)):
            raise DestructError(
                f"the pointers of {self.folder} cannot be written", "make room and have the right to", Exit.ENVIRONMENT
            )


def _verified(checkpoint: Path) -> dict[str, Any]:
    older = [other for other in finding.checkpoints(checkpoint.parent) if other.name < checkpoint.name]
    go_on = f"set run.resume to {older[-1]}, or " if older else ""
    return manifest.verify(checkpoint, remedy=f"{go_on}start the run anew with run.resume=never")


def _aside(pointer: Path) -> Path:
    return pointer.with_name(f".{pointer.name}")


def _write_aside(pointer: Path, name: str) -> Path:
    """The file that is to take a pointer's place, synced to disk."""
    aside = _aside(pointer)
    aside.write_text(name + "\n", encoding="utf-8")
    manifest.sync(aside)
    return aside


def _empty(stage: Path) -> None:
    """Make the stage anew; one that a killed run left behind goes too."""
    for stale in stage.parent.glob(".stage-*"):
        shutil.rmtree(stale)
    stage.mkdir(parents=True)


def _tried(write: Callable[[], None]) -> bool:
    """False when the disk failed (full, over quota, read-only); anything else is a bug and raises.

    A failed write is an error of its own in safetensors, and one of several bare RuntimeErrors in torch.save.
    """
    try:
        write()
    except (OSError, SafetensorError):
        return False
    except RuntimeError as error:
        if all(frame.filename != torch.serialization.__file__ for frame in traceback.extract_tb(error.__traceback__)):
            raise
        return False
    return True
