"""Files that outlast a crash: on the disk before anything says that they are there."""

import os
from pathlib import Path


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
