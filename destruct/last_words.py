"""Between a rank and the launcher that looks after it: where its log is, how it ends, and whether that lives."""

import contextlib
import fcntl
import os
import platform
from collections.abc import Iterable
from pathlib import Path

FOLDER = "DESTRUCT_REPORTS"
"""Variable with the launcher's folder for it; not set under others."""

STARTED_AGAIN = "DESTRUCT_AGAIN"
"""Variable of a run that is started again, as it was: 1, or the Slurm job, of a chain the first, whose life it is."""


def job() -> str | None:
    """The Slurm job that this run is a life of; of a chain the first."""
    again = os.environ.get(STARTED_AGAIN, "1")
    return os.environ.get("SLURM_JOB_ID") if again == "1" else again


def log_is_at(path: Path, rank: int) -> None:
    """Let the launcher find a rank's log."""
    if FOLDER in os.environ:
        link = Path(os.environ[FOLDER]) / f"rank-{rank}"
        with contextlib.suppress(OSError):
            link.unlink(missing_ok=True)
            link.symlink_to(path.absolute())


def place_of_output() -> Path | None:
    """Where a rank that has no log yet keeps what is printed, so that the launcher finds it there; None without one."""
    if FOLDER not in os.environ:
        return None
    rank = os.environ.get("RANK", "0")
    path = Path(os.environ[FOLDER]) / f"printed-{rank}"
    log_is_at(path, int(rank) if rank.isdecimal() else 0)
    return path


def failed() -> None:
    """Tell the launcher that this rank ends now, before its work is done: the others may fail for want of it."""
    if FOLDER in os.environ:
        with contextlib.suppress(OSError):
            (Path(os.environ[FOLDER]) / f"failed-{os.environ.get('RANK', '0')}").touch()


def blamed(ranks: Iterable[int], why: str) -> None:
    """Tell the launcher which ranks are at fault, in a few words, where the others found out.

    Args:
        ranks: none where it cannot be told; then the words say what is wrong.
    """
    if FOLDER in os.environ:
        for rank in [str(rank) for rank in ranks] or ["nobody"]:
            with contextlib.suppress(OSError):
                (Path(os.environ[FOLDER]) / f"blamed-{rank}").write_text(why, encoding="utf-8")


def again() -> None:
    """Ask the launcher to start the run anew, from its last checkpoint."""
    if FOLDER in os.environ:
        with contextlib.suppress(OSError):
            (Path(os.environ[FOLDER]) / "again").touch()


def launcher_is_gone() -> bool:
    """Whether the launcher was killed, so that nobody looks after this rank any more; False under others.

    It holds a lock on its folder for as long as it lives; one on another machine may not be seen from here.
    """
    if FOLDER not in os.environ:
        return False
    with contextlib.suppress(OSError):
        if (Path(os.environ[FOLDER]) / "node").read_text(encoding="utf-8") != platform.node():
            return False
        handle = os.open(os.environ[FOLDER], os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return True
        finally:
            os.close(handle)
    return False
