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

NAME = ".lock"
PATIENCE_S = 60.0
"""For a run that was asked to stop, or lost its machine: file systems in a network take a while to see that."""

LOOK_S = 0.2
UNKNOWN = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Of file systems that know no locks."""


class Claim:
    """A run's folder as this process's own.  A POSIX lock: no process that is started or forked from here holds it."""

    def __init__(self) -> None:
        self._file: TextIO | None = None

    def take(self, folder: Path, say: Callable[[str], None]) -> None:
        """Claim a folder in place of the one that was claimed; of none that is not there.

        Args:
            say: gets a line where it has to wait, and where the folder's file system knows no locks.

        Raises:
            DestructError: another process has it, and keeps it.
            OSError: the folder cannot be written.
        """
        self.leave()
        if not folder.is_dir():
            return
        self._file = (folder / NAME).open("a+", encoding="utf-8")
        try:
            if not _locked(self._file):
                self._wait(folder, say)
        except OSError as error:
            if error.errno not in UNKNOWN:
                raise
            say(f"{folder} cannot be locked ({error.strerror}): let no other run write there")
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {platform.node()}")
        self._file.flush()

    def leave(self) -> None:
        """Let others have it."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _wait(self, folder: Path, say: Callable[[str], None]) -> None:
        assert self._file is not None
        self._file.seek(0)
        owner = self._file.read() or "another process"
        say(f"{folder} is in use by {owner}: waiting up to {PATIENCE_S:.0f} s for its end")
        until = time.monotonic() + PATIENCE_S
        while not _locked(self._file):
            if time.monotonic() > until:
                raise DestructError(
                    f"{folder} is in use by {owner}",
                    "wait for its end, stop it by SIGTERM, or give this run another run.name",
                    Exit.ENVIRONMENT,
                )
            time.sleep(LOOK_S)


def _locked(file: TextIO) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX allows either for one that another process has
        return False
    return True
