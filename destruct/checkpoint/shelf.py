"""The `checkpoints/` folder of a run: pointers, what is given up, what is kept.  Each step leaves it whole.

step-XXXXXXXX/, warmup-XXXXXXXX/  what the run went through
latest, best  files that name one of them
given-up/  later ones of a life that was set back, or found damaged; nothing resumes from there
"""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from destruct.checkpoint import finding
from destruct.checkpoint.finding import BEST, LATEST
from destruct.checkpoint.state import TrainState, step_name
from destruct.durable import sync

GIVEN_UP = "given-up"
STATE = "state.json"


def best_of(folder: Path, state: TrainState) -> Path | None:
    """The best checkpoint that a state tells of; None when it does not lie in this folder, or another took its name."""
    if state.best_update is None:
        return None
    checkpoint = folder / step_name(state.best_update)
    try:
        own = TrainState.load(checkpoint / STATE)
    except (OSError, ValueError):
        return None
    return checkpoint if (own.best_update, own.best_loss) == (state.best_update, state.best_loss) else None


def publish(stage: Path, name: str, best: bool) -> None:
    """Give a sealed stage its name, then let the pointers name it.

    Raises:
        OSError: the disk refuses; then the pointers are what they were.
    """
    folder = stage.parent
    pointers = [folder / pointer for pointer in ((LATEST, BEST) if best else (LATEST,))]
    # A disk that is full is so here at the latest: from the first rename on, nothing is written any more.
    asides = [_write_aside(pointer, name) for pointer in pointers]
    older = give_up(folder / name) if (folder / name).exists() else None
    try:
        os.rename(stage, folder / name)
    except OSError:
        if older is not None:
            os.rename(older, folder / name)
        raise
    sync(folder)
    for aside, pointer in zip(asides, pointers, strict=True):
        os.rename(aside, pointer)
    sync(folder)


def stand_at(checkpoint: Path, best: Path | None) -> None:
    """Let a run go on from one of its checkpoints: later ones are given up, and both pointers agree.

    Args:
        best: the best one at that time; None when it does not lie here.

    Raises:
        OSError: the folder cannot be written.
    """
    folder = checkpoint.parent
    names = {LATEST: checkpoint.name, BEST: best.name if best else ""}
    asides = {
        key: _write_aside(folder / key, name)
        for key, name in names.items()
        if name and finding.name_in(folder / key) != name
    }
    for later in finding.checkpoints(folder):
        if finding.place(later) > finding.place(checkpoint):
            give_up(later)
    for key, aside in asides.items():
        os.rename(aside, folder / key)
    if not names[BEST]:
        (folder / BEST).unlink(missing_ok=True)
    sync(folder)


def newest_well(folder: Path) -> Path | None:
    """The newest checkpoint before which no step was dropped, after later ones were given up; None without one."""
    for checkpoint in finding.checkpoints(folder):
        if TrainState.load(checkpoint / STATE).skipped_in_a_row == 0:
            return checkpoint
        give_up(checkpoint)
    return None


def give_up(checkpoint: Path) -> Path:
    """Put a checkpoint where none is resumed from, under the first free name; returns that place."""
    shelf = checkpoint.parent / GIVEN_UP
    shelf.mkdir(exist_ok=True)
    place, number = shelf / checkpoint.name, 1
    while place.exists():
        number += 1
        place = shelf / f"{checkpoint.name}.{number}"
    os.rename(checkpoint, place)
    sync(shelf)
    return place


def retire(folder: Path, keep: int) -> list[str]:
    """Delete all checkpoints but the newest `keep` and the one that `best` names; returns the names of the deleted.

    One that cannot be deleted stays, and is tried again the next time.
    """
    stay, gone = finding.name_in(folder / BEST), []
    for old in finding.checkpoints(folder)[keep:]:
        if old.name != stay:
            gone.append(old.name)
            discard(old)
    return gone


def discard(checkpoint: Path) -> None:
    """Delete a checkpoint; one that was deleted by half is none."""
    dying = checkpoint.with_name(f".gone-{checkpoint.name}")
    with suppress(OSError):
        shutil.rmtree(dying, ignore_errors=True)
        os.rename(checkpoint, dying)
        shutil.rmtree(dying)


def tidy(folder: Path) -> None:
    """Delete what a killed run left behind: stages, pointers that were not renamed, what was deleted by half.

    Raises:
        OSError: it cannot be deleted.
    """
    for left in (*folder.glob(".stage-*"), *folder.glob(".gone-*")):
        shutil.rmtree(left)
    for pointer in (LATEST, BEST):
        _aside(folder / pointer).unlink(missing_ok=True)


def _aside(pointer: Path) -> Path:
    return pointer.with_name(f".{pointer.name}")


def _write_aside(pointer: Path, name: str) -> Path:
    """The file that is to take a pointer's place, synced to disk."""
    aside = _aside(pointer)
    aside.write_text(name + "\n", encoding="utf-8")
    sync(aside)
    return aside
