"""Finding a checkpoint on the disk: the newest one, the one that a pointer names, or the one that a person names.

A checkpoint is called `step-XXXXXXXX` by its updates, or `warmup-XXXXXXXX` by the warm-up's steps before the first of
them.  A pointer is a file beside the checkpoints that holds the name of one of them.  All of these folders are what the
run went through: what was given up lies in a folder of its own (`shelf.py`).
"""

import re
from pathlib import Path

from destruct.checkpoint import manifest
from destruct.errors import DestructError

LATEST, BEST = "latest", "best"


KINDS = ("warmup", "step")


def is_name(name: str) -> bool:
    """Whether a checkpoint of a run may be called so."""
    return re.fullmatch(rf"({'|'.join(KINDS)})-\d{{8}}", name) is not None


def place(checkpoint: Path) -> tuple[int, str]:
    """What checkpoints of one run, and copies that are named after them, are ordered by."""
    return KINDS.index(checkpoint.name.partition("-")[0]), checkpoint.name[: checkpoint.name.index("-") + 9]


def is_named_after_one(name: str) -> bool:
    """Whether it is the name of a checkpoint, or of a copy that still tells of which."""
    return re.match(rf"({'|'.join(KINDS)})-\d{{8}}", name) is not None


def checkpoints(folder: Path) -> list[Path]:
    """Those of a `checkpoints/` folder, newest first; not a copy that a person put beside them."""
    return sorted((path for path in folder.glob("*-*") if is_name(path.name)), key=place, reverse=True)


def older_than(checkpoint: Path) -> list[Path]:
    """Those beside a checkpoint that came before it, newest first; none where it is not called like one."""
    if not is_name(checkpoint.name):
        return []
    return [other for other in checkpoints(checkpoint.parent) if place(other) < place(checkpoint)]


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
    if not is_name(name) or not folder.is_dir():
        raise DestructError(
            f"{pointer} names {name!r}, which is no checkpoint here",
            f"write the name of one of the step-* folders of {pointer.parent}",
        )
    return folder


def stale(folder: Path) -> str | None:
    """One line where `latest` does not name the newest checkpoint of a `checkpoints/` folder; None where it does."""
    there, pointer = checkpoints(folder), folder / LATEST
    if not there or name_in(pointer) == there[0].name:
        return None
    return f"{pointer} names {name_in(pointer)!r}, and {there[0].name} is the newest here"


def named(path: Path) -> list[Path]:
    """The checkpoints that a person means by a path: it, the one that it points to, or all of a run, newest first.

    Raises:
        DestructError: there is none.
    """
    what = "does not exist"
    if (path / "checkpoints").is_dir():
        if found := checkpoints(path / "checkpoints"):
            return found
        what = f"holds no checkpoint: {path / 'checkpoints'} is empty"
    elif path.is_dir():
        if (path / manifest.NAME).exists() or is_name(path.name):
            return [path]
        what = f"holds no checkpoint: neither checkpoints/ nor {manifest.NAME} is in it"
    elif path.is_file():
        if path.name in (LATEST, BEST):
            return [follow(path)]
        what = f"is neither a checkpoint nor a pointer ({LATEST}, {BEST})"
    raise DestructError(
        f"run.resume: {path.absolute()} {what}",
        f"name a checkpoint (step-XXXXXXXX), a pointer beside it ({LATEST}, {BEST}) or a run's folder",
    )
