"""Folders that one process makes and all use: locked while they are made, whole when they have their name."""

import os
import re
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import filelock

from destruct.durable import publish
from destruct.errors import DestructError
from destruct.exits import Exit

_POLL_S = 0.05
_BEAT_S = 1.0
_FORGOTTEN_S = 86_400.0
"""Age from which what another host was making counts as left behind."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class MadeOnce:
    """One such folder of a cache.

    Args:
        source: whose tokens it holds, for errors.
        final: its name, on a disk that all ranks of a machine see, or all machines.
        patience_s: how long another process that makes it may stand still.
    """

    source: str
    final: Path
    patience_s: float

    def get(self, opened: Callable[[Path], T | None], fill: Callable[[Path], None], head_start_s: float = 0.0) -> T:
        """What is in the folder, made here where it is missing and nobody else is making it.

        Args:
            opened: looks into a folder; None where it is not there, or not whole.
            fill: makes the content in the folder that it is given, and syncs it.
            head_start_s: how long another process that wants the same gets to begin it.

        Raises:
            DestructError: the disk refuses; another process makes it and has not gone on for `patience_s`; or as
                `fill` says.
        """
        lock = filelock.FileLock(self.lock)
        with self._disk_faults():
            self.final.parent.mkdir(parents=True, exist_ok=True)
            self._let_begin(head_start_s)
            found = opened(self.final)
            if found is not None:
                return found
            self._take(lock)
            try:
                found = opened(self.final)  # made while this process waited
                if found is None:
                    found = self._make(opened, fill)
                return found
            finally:
                lock.release()

    @property
    def lock(self) -> Path:
        """The file that its maker holds."""
        return self.final.with_name(f"{self.final.name}.lock")

    def remove(self) -> bool:
        """Take the folder away, at once for whoever opens it; False where somebody is making it, or it is gone."""
        gone = self._stage("gone")
        try:
            with suppress(OSError), filelock.FileLock(self.lock).acquire(timeout=0):  # a timeout is an OSError too
                os.rename(self.final, gone)
                return True
        finally:
            shutil.rmtree(gone, ignore_errors=True)
        return False

    @property
    def _alive(self) -> Path:
        """The file that its maker touches."""
        return self.final.with_name(f"{self.final.name}.alive")

    def _make(self, opened: Callable[[Path], T | None], fill: Callable[[Path], None]) -> T:
        for left in self.final.parent.glob("*.tmp"):
            if _is_left_behind(left):
                shutil.rmtree(left, ignore_errors=True)
        if self.final.exists():  # and does not open
            shutil.rmtree(self.final)
        stage = self._stage("stage")
        try:
            with self._beating():
                fill(stage)
            with suppress(OSError):  # where locks do not reach other hosts, one may have been faster
                publish(stage, self.final)
            found = opened(self.final)
            if found is None:
                publish(stage, self.final)  # raises what is wrong
                found = opened(self.final)
            assert found is not None, "a folder that was just made opens"
            return found
        finally:
            shutil.rmtree(stage, ignore_errors=True)

    @contextmanager
    def _beating(self) -> Iterator[None]:
        """Show those who wait that this process lives: reading and downloading may take longer than their patience."""
        done = threading.Event()

        def beat() -> None:
            while True:
                with suppress(OSError):  # a full disk shows elsewhere
                    self._alive.touch()
                if done.wait(_BEAT_S):
                    return

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self._alive.unlink(missing_ok=True)

    def _stage(self, purpose: str) -> Path:
        owner = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        return self.final.with_name(f"{self.final.name}.{purpose}-{owner}.tmp")

    def _let_begin(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.final.exists() and not self._is_held():
            time.sleep(_POLL_S)

    def _is_held(self) -> bool:
        """Not whether the lock's file exists: it outlasts a folder that was removed."""
        try:
            filelock.FileLock(self.lock).acquire(timeout=0).lock.release()
        except filelock.Timeout:
            return True
        return False

    def _take(self, lock: filelock.BaseFileLock) -> None:
        """Wait for the lock for as long as its holder lives."""
        beat, since = 0, time.monotonic()
        while True:
            with suppress(filelock.Timeout):
                lock.acquire(timeout=min(_BEAT_S, self.patience_s), poll_interval=_POLL_S)
                return
            with suppress(FileNotFoundError):
                now = self._alive.stat().st_mtime_ns
                beat, since = (now, time.monotonic()) if now != beat else (beat, since)
            if time.monotonic() - since > self.patience_s:
                raise DestructError(
                    f"source {self.source!r}: another process holds {lock.lock_file} and has shown no sign of life for "
                    f"{self.patience_s:.0f} s",
                    "end that process, or give data.cache another folder",
                    Exit.ENVIRONMENT,
                )

    @contextmanager
    def _disk_faults(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:  # of the screen
            raise
        except (OSError, NotImplementedError) as error:  # the latter where a file system cannot lock
            free, folder = "unknown", self.final.parent
            with suppress(OSError):
                free = f"{shutil.disk_usage(folder).free / 2**20:,.0f} MiB"
            raise DestructError(
                f"source {self.source!r}: the token cache in {folder} cannot be written ({free} free): "
                f"{getattr(error, 'strerror', None) or error}",
                "make room there, or set data.cache to a folder on another disk",
                Exit.ENVIRONMENT,
            ) from error


def _is_left_behind(stage: Path) -> bool:
    """Whether whoever made it is gone: here the process, elsewhere so long that nobody can be at it."""
    owner = re.search(r"\.(?:stage|gone)-(?P<host>.+)-(?P<pid>\d+)-[0-9a-f]{8}\.tmp$", stage.name)
    if owner is None or owner["host"] != socket.gethostname():
        with suppress(OSError):
            return time.time() - stage.stat().st_mtime > _FORGOTTEN_S
        return False
    try:
        os.kill(int(owner["pid"]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False
