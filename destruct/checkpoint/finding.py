"""Finding a checkpoint on the disk: the one that a pointer names, or a person.

A pointer is a file beside the checkpoints that holds the name of one of them.
"""

import re
from pathlib import Path

from destruct.checkpoint import manifest
from destruct.errors import DestructError

LATEST, BEST = "latest", "best"


def checkpoints(folder: Path) -> list[Path]:
    """Those of a `checkpoints/` folder, oldest first; not a copy that a person put beside them."""
    return sorted(folder.glob("step-" + 8 * "[0-9]"))


def name_in(pointer: Path) -> str:
    """What a pointer says; nothing where it is no file."""
    return pointer.read_text(encoding="utf-8", errors="replace").strip() if pointer.is_file() else ""


def follow(pointer: Path) -> Path:
    """The checkpoint that a pointer names.

    Raises:
        DestructError: it names something else than a checkpoint beside it.
    """
    name = name_in(pointer)
    folder = pointer.parent / name
    if not name.startswith("step-") or folder.parent != pointer.parent or not folder.is_dir():
        raise DestructError(
            f"{pointer} names {name!r}, which is no checkpoint here",
            f"write the name of one of the step-* folders of {pointer.parent}",
        )
    return folder


def latest(folder: Path) -> Path | None:
    """The checkpoint that `latest` names in a `checkpoints/` folder; None when there is none at all.

    Raises:
        DestructError: it names none, or there are checkpoints and no `latest`.
    """
    pointer = folder / LATEST
    if pointer.exists():
        return follow(pointer)
    if there := checkpoints(folder):
        newest = there[-1].name
        raise DestructError(f"{folder} holds {newest} but no pointer {LATEST!r}", f"write {newest} into {pointer}")
    return None


def named(path: Path) -> Path:
    """The checkpoint that a person means by a path: it, a pointer to it, or a run's folder whose latest it is.

    Raises:
        DestructError: there is none.
    """
    what = "does not exist"
    if (path / "checkpoints").is_dir():
        if found := latest(path / "checkpoints"):
            return found
        what = f"holds no checkpoint: {path / 'checkpoints'} is empty"
    elif path.is_dir():
        if (path / manifest.NAME).exists() or re.fullmatch(r"step-\d{8}", path.name):
            return path
        what = f"holds no checkpoint: neither checkpoints/{LATEST} nor {manifest.NAME} is in it"
    elif path.is_file():
        if path.name in (LATEST, BEST):
            return follow(path)
        what = f"is neither a checkpoint nor a pointer ({LATEST}, {BEST})"
    raise DestructError(
        f"run.resume: {path.absolute()} {what}",
        f"name a checkpoint (step-XXXXXXXX), a pointer beside it ({LATEST}, {BEST}) or a run's folder",
    )
