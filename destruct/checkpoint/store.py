"""Checkpoints of a run, over all ranks: staged, voted on, sealed and published behind training; found and verified."""

import shutil
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from destruct.checkpoint import finding, manifest, shelf
from destruct.checkpoint.state import TrainState, step_name
from destruct.engine.topology import Topology
from destruct.errors import DestructError
from destruct.exits import Exit
from destruct.heartbeat import HEART

ASK_AGAIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Found:
    """A checkpoint that was verified file by file."""

    folder: Path
    facts: dict[str, Any]  # its manifest
    passed_over: tuple[str, ...]  # lines: what is wrong with newer ones, and with `latest`


class CheckpointStore:
    """The `checkpoints/` folder of a run.

    Args:
        folder: that folder; made at the first save.
        keep: newest checkpoints that stay, besides the best.
    """

    def __init__(self, folder: Path, topology: Topology, keep: int):
        self.folder, self.topology, self.keep = folder, topology, keep
        self.newest: str | None = None  # where the run stands here, as far as it is known to be whole
        self._publisher = ThreadPoolExecutor(1, "publish")
        self._begun: Path | None = None  # a save of which no rank knows yet how it ends
        self._publishing: Future[bool] | None = None  # on the first rank, where the stage is whole

    def path(self, update: int) -> Path:
        """Where the checkpoint after `update` updates lies."""
        return self.folder / step_name(update)

    def holds(self, checkpoint: Path | None) -> bool:
        """Whether what `latest` or `named` found is one of this folder."""
        return checkpoint is not None and checkpoint.parent == self.folder

    @property
    def is_saving(self) -> bool:
        """Whether `settle` has something to tell; the same on all ranks."""
        return self._begun is not None

    def save(
        self,
        name: str,
        writers: Sequence[Callable[[Path], None]],
        facts: dict[str, Any],
        best: bool = False,
        older_may_go: bool = True,
    ) -> None:
        """Let all ranks write into one stage; behind what they do next, the first one publishes it.

        Args:
            name: of the checkpoint, as `finding.is_name` has it.
            writers: called with the stage, one after the other, each by all ranks.
            facts: what identifies the checkpoint, for its manifest.
            best: the pointer `best` is to name it, too.
            older_may_go: all but the newest `keep` are deleted then.
        """
        self.settle()
        self._begun, self.newest = self.folder / name, name
        stage = self.folder / f".stage-{name}"
        written = self.topology.first_rank_makes(lambda: _tried(lambda: _empty(stage)))
        for write in writers:
            # A vote after each: engines meet in a barrier when they save, and a rank that failed must not miss one.
            written = written and self.topology.all_agree(_tried(partial(write, stage)))
        if written and self.topology.is_first:
            publish = partial(self._publish, stage, name, facts, best, older_may_go)
            self._publishing = self._publisher.submit(_tried, publish)

    def settle(self) -> Path | None:
        """Wait until the save that was begun is published; all ranks call it.

        Returns:
            The checkpoint.  None when the disk failed a rank: then no stage is left and the run goes on.
        """
        if self._begun is None:
            return None
        begun, publishing, self._begun, self._publishing = self._begun, self._publishing, None, None

        def goes_on() -> bool:
            return publishing is not None and bool(wait([publishing], timeout=ASK_AGAIN_S).not_done)

        # Asked for again and again, as hashing a large model takes longer than ranks may wait in one collective.
        while self.topology.first_rank_makes(goes_on):
            pass

        def outcome() -> bool:
            published = publishing is not None and publishing.result()
            if not published:
                with suppress(OSError):
                    shelf.tidy(self.folder)
            return published

        if self.topology.first_rank_makes(outcome):
            return begun
        self.newest = None
        return None

    def close(self) -> None:
        """End the publisher, after what it is at; a stage that nobody settles goes.  A rank calls it for itself."""
        self._publisher.shutdown()
        if self.is_saving and self.topology.is_first:
            with suppress(OSError):
                shelf.tidy(self.folder)

    def _publish(self, stage: Path, name: str, facts: dict[str, Any], best: bool, older_may_go: bool) -> None:
        manifest.seal(stage, facts)
        shelf.publish(stage, name, best)
        if older_may_go:
            shelf.retire(self.folder, self.keep)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder that all ranks see, for what is not needed after the block."""
        place = self.folder / ".stage-scratch"
        try:
            yield place
        finally:
            if self.topology.is_first:
                shutil.rmtree(place, ignore_errors=True)

    def latest(self) -> Found | None:
        """The newest checkpoint that is whole; None when there is none at all.

        Raises:
            DestructError: there are some, and each is damaged.
        """
        candidates, note = self.topology.first_rank_makes(
            lambda: (finding.checkpoints(self.folder), finding.stale(self.folder))
        )
        return self._first_valid(candidates, note) if candidates else None

    def named(self, path: Path) -> Found:
        """The checkpoint that a person means by `path`; of a run's folder, its newest one that is whole.

        Raises:
            DestructError: it is damaged or cannot be read, or there is none.
        """

        def find() -> tuple[list[Path], str | None]:
            try:
                found = [self._as_ours(checkpoint) for checkpoint in finding.named(path)]
                return found, finding.stale(path / "checkpoints")
            except OSError as error:
                raise DestructError(
                    f"run.resume: {error.filename or path} cannot be read: {error.strerror}", "make it readable"
                ) from None

        return self._first_valid(*self.topology.first_rank_makes(find))

    def _first_valid(self, candidates: list[Path], note: str | None) -> Found:
        """The first one that is whole."""
        passed = [] if note is None else [note]
        for checkpoint in candidates:
            facts, fault = self._verified(checkpoint)
            if fault is None:
                return Found(checkpoint, facts, tuple(passed))
            passed.append(fault)
        if len(candidates) > 1:
            raise DestructError(
                f"all {len(candidates)} checkpoints of {candidates[0].parent} are damaged: {'; '.join(passed)}",
                "bring one of them back from a copy, or start the run anew with run.resume=never",
            )
        older = finding.older_than(candidates[0])
        go_on = f"set run.resume to {older[0]}, or " if older else ""
        raise DestructError(passed[-1], f"{go_on}start the run anew with run.resume=never")

    def _verified(self, checkpoint: Path) -> tuple[dict[str, Any], str | None]:
        """Its manifest, and what is wrong with it; the ranks share the files."""

        def read() -> tuple[dict[str, Any], str | None]:
            try:
                return manifest.read(checkpoint), None
            except manifest.Damaged as damage:
                return {}, str(damage)

        facts, fault = self.topology.first_rank_makes(read)
        if fault is not None:
            return facts, fault
        largest_first = sorted(facts[manifest.FILES], key=lambda name: -facts[manifest.FILES][name]["size"])
        mine = largest_first[self.topology.rank :: self.topology.world_size]
        with HEART.during("verifying the checkpoint"):
            HEART.expect(sum(facts[manifest.FILES][name]["size"] for name in mine))
            try:
                manifest.check(checkpoint, facts, mine, tell=HEART.advance)
            except manifest.Damaged as damage:
                fault = str(damage)
        return facts, next(filter(None, self.topology.from_all(fault)), None)

    def _as_ours(self, checkpoint: Path) -> Path:
        """Its path as `self.path` has it where it lies in this folder, however it was named, else the resolved one."""
        home, place = self.folder.resolve(), checkpoint.resolve()
        for known in (place, checkpoint.parent.resolve() / checkpoint.name):
            if known.parent == home and finding.is_named_after_one(known.name):
                return self.folder / known.name
        if home.parent in place.parents:
            raise DestructError(
                f"run.resume: {checkpoint} lies in this run's own folder, but not as checkpoints/step-XXXXXXXX",
                f"move it there, or out of {self.folder.parent}",
            )
        return place

    def stand_at(self, checkpoint: Path, state: TrainState | None = None, best: bool = False) -> None:
        """Let a run go on from one of these checkpoints: later ones are given up, and both pointers agree.

        Args:
            state: of that time, which tells the best one.
            best: it is the best one itself.

        Raises:
            DestructError: the folder cannot be written.
        """

        def stand() -> None:
            known = None if state is None else shelf.best_of(self.folder, state)
            shelf.stand_at(checkpoint, checkpoint if best else known)

        if not self.topology.first_rank_makes(lambda: _tried(stand)):
            raise DestructError(
                f"the pointers of {self.folder} cannot be written", "make room and have the right to", Exit.ENVIRONMENT
            )
        self.newest = checkpoint.name


def _empty(stage: Path) -> None:
    """Make the stage anew; one that a killed run left behind goes too."""
    shelf.tidy(stage.parent)
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
