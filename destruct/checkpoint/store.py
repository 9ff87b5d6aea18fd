"""Checkpoints of a run: staged, voted on by all ranks, sealed, renamed once, then pointed to."""

import os
import shutil
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from destruct.checkpoint import manifest
from destruct.engine.topology import Topology
from destruct.errors import DestructError

POINTER = "latest"


class CheckpointStore:
    """The `checkpoints/` folder of a run.

    Args:
        folder: that folder; made at the first save.
        keep: newest checkpoints that stay.
    """

    def __init__(self, folder: Path, topology: Topology, keep: int):
        self.folder, self.topology, self.keep = folder, topology, keep

    def path(self, update: int) -> Path:
        """Where the checkpoint after `update` updates lies."""
        return self.folder / f"step-{update:08d}"

    def save(self, update: int, writers: Sequence[Callable[[Path], None]], facts: dict[str, Any]) -> Path | None:
        """Let all ranks write into one stage and publish it as step-XXXXXXXX.

        Args:
            writers: called with the stage, one after the other, each by all ranks.
            facts: what identifies the checkpoint, for its manifest.

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
        if written and first(lambda: _tried(lambda: self._publish(stage, final, {"update": update, **facts}))):
            return final
        first(lambda: shutil.rmtree(stage, ignore_errors=True))
        return None

    def _publish(self, stage: Path, final: Path, facts: dict[str, Any]) -> None:
        manifest.seal(stage, facts)
        shutil.rmtree(final, ignore_errors=True)
        os.rename(stage, final)
        manifest.sync(self.folder)
        pointer = self.folder / f".{POINTER}"
        pointer.write_text(final.name + "\n", encoding="utf-8")
        manifest.sync(pointer)
        os.rename(pointer, self.folder / POINTER)
        manifest.sync(self.folder)
        checkpoints = self._checkpoints()
        # Later ones are of a life that was given up when the pointer was set back: they do not count, and stay.
        for old in checkpoints[: max(0, checkpoints.index(final) + 1 - self.keep)]:
            shutil.rmtree(old, ignore_errors=True)

    def latest(self) -> tuple[Path, dict[str, Any]] | None:
        """The checkpoint that the pointer names, verified file by file, with its manifest; None when there is none.

        Raises:
            DestructError: it is damaged, or the pointer names something else than a checkpoint of this folder.
        """
        return self.topology.first_rank_makes(self._latest)

    def _latest(self) -> tuple[Path, dict[str, Any]] | None:
        pointer = self.folder / POINTER
        if not pointer.exists():
            return None
        name = pointer.read_text(encoding="utf-8", errors="replace").strip() if pointer.is_file() else ""
        folder = self.folder / name
        if not name.startswith("step-") or folder.parent != self.folder or not folder.is_dir():
            raise DestructError(
                f"{pointer} names {name!r}, which is no checkpoint here",
                f"write the name of one of the step-* folders of {self.folder}",
            )
        older = [other.name for other in self._checkpoints() if other < folder]
        go_on = f"write {older[-1]} into {pointer}, or " if older else ""
        return folder, manifest.verify(folder, remedy=f"{go_on}start the run anew with run.resume=never")

    def _checkpoints(self) -> list[Path]:
        """Oldest first; not a copy that a person put beside them."""
        return sorted(self.folder.glob("step-" + 8 * "[0-9]"))


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
