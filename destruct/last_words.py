"""What a rank leaves to the launcher that looks after it: where its log is, and when it ended early."""

import contextlib
import os
from pathlib import Path

FOLDER = "DESTRUCT_REPORTS"
"""Variable with the launcher's folder for it; not set under others."""


def log_is_at(path: Path, rank: int) -> None:
    """Let the launcher find a rank's log."""
    if FOLDER in os.environ:
        link = Path(os.environ[FOLDER]) / f"rank-{rank}"
        with contextlib.suppress(OSError):
            link.unlink(missing_ok=True)
            link.symlink_to(path.absolute())


def failed() -> None:
    """Tell the launcher that this rank ends now, before its work is done: the others may fail for want of it."""
    if FOLDER in os.environ:
        with contextlib.suppress(OSError):
            (Path(os.environ[FOLDER]) / f"failed-{os.environ.get('RANK', '0')}").touch()
