"""The folder that is exported to: what it may be, and how it fills, whole or not at all."""

import os
import platform
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from destruct.checkpoint import finding, manifest
from destruct.durable import publish, sync
from destruct.errors import DestructError
from destruct.exits import Exit
from destruct.exporting.source import RESOLVED

SPARE = 2**24
"""Bytes on the disk for all that is no weight."""

INDEX = "model.safetensors.index.json"
LAST = (INDEX, "config.json")
"""By these transformers takes a folder for a model; where it is filled entry by entry they come when all is there."""

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that end an export."""


def check_place(folder: Path) -> None:
    """Refuse to write over anything, or into a checkpoint; what killed exports left here is taken away.

    Raises:
        DestructError: something is there.
    """
    place = _resolved(folder)
    for stage in _forsaken(place):
        shutil.rmtree(stage, ignore_errors=True)
    if place.exists() and not (place.is_dir() and not any(place.iterdir())):
        what = "is not empty" if place.is_dir() else "is a file"
        raise DestructError(f"--to {folder} {what}; nothing is ever overwritten", "name a folder that does not exist")
    named = Path(os.path.abspath(folder))
    for above in (named, *named.parents, place, *place.parents):
        if (above / manifest.NAME).is_file() and (above / manifest.CHECK).is_file():
            raise DestructError(
                f"--to {folder} lies in the checkpoint {above}, which one more file would damage",
                "name a folder elsewhere",
            )
        if above.name == "checkpoints" and ((above.parent / RESOLVED).is_file() or finding.checkpoints(above)):
            raise DestructError(f"--to {folder} lies among the checkpoints of a run", "name a folder elsewhere")
    there = next(above for above in (place, *place.parents) if above.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        raise DestructError(
            f"--to {folder} cannot be made: nothing may be written to {there}", "name another place", Exit.ENVIRONMENT
        )


def _resolved(folder: Path) -> Path:
    """Where it lies, or would: behind links."""
    return Path(os.path.realpath(folder))


def _forsaken(place: Path) -> Iterator[Path]:
    """Stages of exports to this place that were killed on this machine."""
    ours = re.compile(re.escape(_stage_name(place, "")) + r"(\d+)")
    for path in (*_entries(place), *_entries(place.parent)):
        found = ours.fullmatch(path.name)
        if found and not _lives(int(found[1])):
            yield path


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder; nothing where it is none, or not ours to read: then nothing of ours is in it."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _stage_name(place: Path, process: str) -> str:
    """Tells the place, the machine, of which others may share the disk, and the process."""
    return f".{place.name}.{platform.node()}.{process}"


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another person's
        pass
    return True


@contextmanager
def staged(folder: Path, size: int) -> Iterator[Path]:
    """A folder to write to, whose content comes to lie in `folder` where the block ends well, and is gone where not.

    One that does not exist yet is there at once, whole; one that does may be a disk that is mounted there, and gets
    entry after entry, that by which it is taken for a model last.

    Args:
        folder: was checked.
        size: bytes of the weights.

    Raises:
        DestructError: there is no room, or the disk refuses.
    """
    place = _resolved(folder)
    fills = place.is_dir()
    stage = (place if fills else place.parent) / _stage_name(place, str(os.getpid()))
    made: list[Path] = []
    try:
        for above in reversed([each for each in stage.parents if not each.exists()]):
            above.mkdir(exist_ok=True)
            made.append(above)
        _check_room(stage.parent, folder, size)
        stage.mkdir()
        yield stage
        _sync(stage)
        with _undisturbed():
            if fills:
                _fill(place, stage)
            else:
                publish(stage, place)
            made.clear()
    except OSError as error:
        raise DestructError(
            f"{folder} cannot be written: {error.strerror or error}", "name another place with --to", Exit.ENVIRONMENT
        ) from error
    finally:
        with _undisturbed():
            _take_away(stage, made)


def _take_away(stage: Path, made: list[Path]) -> None:
    """Delete a stage, and the folders that were made for it, innermost first."""
    shutil.rmtree(stage, ignore_errors=True)
    with suppress(OSError):  # somebody else has put something there
        for above in reversed(made):
            above.rmdir()


def _check_room(disk: Path, folder: Path, size: int) -> None:
    free = shutil.disk_usage(disk).free
    if free < size + SPARE:
        raise DestructError(
            f"{folder} would take {(size + SPARE) / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free there",
            "make room, or name another place with --to",
            Exit.ENVIRONMENT,
        )


def _sync(stage: Path) -> None:
    mode = (stage / "README.md").stat().st_mode  # safetensors writes for the owner alone
    for path in stage.rglob("*"):
        if path.is_file():
            path.chmod(mode)
        sync(path)


def _fill(place: Path, stage: Path) -> None:
    moved = []
    try:
        for path in sorted(stage.iterdir(), key=lambda path: path.name in LAST):
            os.rename(path, place / path.name)
            moved.append(path)
        sync(place)
    except OSError:
        for path in moved:
            os.rename(place / path.name, path)
        raise


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Within the block, a moment, signals end nothing."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
