"""One run at a time writes a folder: a lock that goes with the process that holds it, however that ends."""

import errno
import fcntl
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from destruct.errors import DestructError
from destruct.exits import Exit

PATIENCE_S = 120.0
"""For a run that was asked to stop, or lost its machine, which a file system in a network notices after up to 90 s."""

LOOK_S = 0.2
UNKNOWN = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Of file systems that know no locks."""


class Claim:
    """A run's folder as this process's own.  A POSIX lock: no process that is started or forked from here holds it.

    Args:
        folder: it may be put aside and made anew: the lock lies beside it, and stays when it is left.
    """

    def __init__(self, folder: Path):
        self._folder, self._lock = folder, folder.with_name(f".{folder.name}.lock")
        self._file: TextIO | None = None

    def take(self, say: Callable[[str], None], patience_s: float | None = None) -> None:
        """Claim it, unless it is claimed already, or no folder is there that it could lie in.

        Args:
            say: gets a line where it has to wait, and where the file system knows no locks.
            patience_s: seconds that another process has to end.

        Raises:
            DestructError: another process has it, and keeps it.
            OSError: the lock cannot be written.
        """
        if self._file is not None or not self._lock.parent.is_dir():
            return
        file = self._lock.open("a+", encoding="utf-8")
        try:
            if not _locked(file):
                self._wait(file, say, PATIENCE_S if patience_s is None else patience_s)
        except OSError as error:
            if error.errno not in UNKNOWN:
                raise
            say(f"{self._lock} cannot be locked ({error.strerror}): let no other run write to {self._folder}")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        self._file = file

    def leave(self) -> None:
        """Let others have it."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _wait(self, file: TextIO, say: Callable[[str], None], patience_s: float) -> None:
        file.seek(0)
        problem = f"{self._folder} is in use by {file.read() or 'another process'}"
        if patience_s > 0:
            say(f"{problem}: waiting up to {patience_s:.0f} s for its end")
        until = time.monotonic() + patience_s
        while not _locked(file):
            if time.monotonic() > until:
                remedy = f"stop it by SIGTERM, or set another run.name; if it is no more, delete {self._lock}"
                raise DestructError(problem, remedy, Exit.ENVIRONMENT)
            time.sleep(LOOK_S)


def _locked(file: TextIO) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX allows either for one that another process has
        return False
    return True


def holder(folder: Path) -> str | None:
    """Who writes a run's folder now, in words; None where nobody does, or where that cannot be told.

    Not for the process that does: closing any handle on the lock would undo it.
    """
    try:
        with folder.with_name(f".{folder.name}.lock").open("r+", encoding="utf-8") as file:
            return None if _locked(file) else file.read() or "another process"
    except OSError:
        return None
