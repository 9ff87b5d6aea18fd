"""Files that outlast a crash: on the disk before anything says that they are there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from destruct.errors import DestructError
from destruct.exits import Exit


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Within the block what is written goes to a run's folder; DestructError where the disk refuses it."""
    try:
        yield
    except OSError as error:
        raise DestructError(
            f"{folder} cannot be written: {error.strerror or error}",
            "make room there, then go on from the newest checkpoint with run.resume=auto",
            Exit.ENVIRONMENT,
        ) from None


def sync(path: Path) -> None:
    """fsync a file or a directory."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def publish(stage: Path, final: Path) -> None:
    """Give a synced folder its name, at once and for good; `final` must not exist.

    Raises:
        OSError: it does, or the disk refuses.
    """
    sync(stage)
    os.rename(stage, final)
    sync(final.parent)
