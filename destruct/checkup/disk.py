"""The file system that a run writes to: room, speed, and whether what it promises holds."""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from destruct.checkup.finding import Finding, fail, ok, warn

GIB, MIB = 2**30, 2**20
WRITTEN, WRITING_S = 1216 * MIB, 4.0
SLOW_MIB_S, SLOW_SYNC_S = 100.0, 0.5
SKEW_S = 2.0
ROOM = 5 * GIB
"""Free bytes below which it is told where the plan does not say how much a run needs."""

IN_MEMORY = ("tmpfs", "ramfs")


def disk(folder: Path, needed: int | None, called: str) -> Iterator[Finding]:
    """Room, speed, fsync, rename, locks and clock of the file system that holds a folder, made or yet to be made.

    Args:
        needed: bytes that the run's checkpoints take, where that is known.
        called: what the folder is to the person.
    """
    whole = Path(os.path.realpath(folder))
    try:
        place = next(path for path in (whole, *whole.parents) if path.exists())
        yield _room(place, needed, called)
        if shutil.disk_usage(place).free < 2 * WRITTEN:
            return
    except OSError as error:
        words = f"{whole} cannot be looked at: {error.strerror or error}"
        yield fail(called, words, "have the right to read the folders above it, or name another folder")
        return
    try:
        with tempfile.TemporaryDirectory(prefix=".destruct-doctor-", dir=place) as scratch:
            yield from _writing(Path(scratch), place, called)
    except OSError as error:
        words = f"{place} cannot be written: {error.strerror or error}"
        yield fail(f"{called}: writing", words, "have the right to write there, or name another folder")


def _room(place: Path, needed: int | None, called: str) -> Finding:
    room, kind = shutil.disk_usage(place), kind_of(place)
    words = f"{place} has {room.free / GIB:.1f} of {room.total / GIB:.1f} GiB free ({kind})"
    if needed is not None and room.free < needed:
        return fail(called, f"{words}, and the checkpoints take {needed / GIB:.1f}", "make room, or name another disk")
    if kind in IN_MEMORY:
        return warn(called, f"{words}: memory, which is gone with the machine", "name a folder on a disk")
    if needed is None and room.free < 2 * WRITTEN:
        return fail(called, words, "make room, or name another disk")
    if needed is None and room.free < ROOM:
        return warn(called, words, "make room, or name another disk")
    return ok(called, words + ("" if needed is None else f", the checkpoints take {needed / GIB:.1f}"))


def kind_of(place: Path) -> str:
    """The type of the file system that holds a path, as the kernel has it."""
    best, kind = "", "unknown"
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        _, at, fstype, *_ = line.split(" ")
        at = at.replace("\\040", " ")
        if (Path(at) == place or Path(at) in place.parents) and len(at) >= len(best):
            best, kind = at, fstype
    return kind


def _writing(scratch: Path, place: Path, called: str) -> Iterator[Finding]:
    large, small = scratch / "large", scratch / "small"
    try:
        size, took_s = _written(large, WRITTEN)
        before = time.time()
        _, sync_s = _written(small, 1)
        after = time.time()
    except _NotSynced as error:
        words = f"fsync fails in {place} ({error}): a checkpoint there would not outlast a crash"
        yield fail(f"{called}: fsync", words, "name a folder of another file system")
        return
    speed = size / MIB / took_s
    words = f"{speed:,.0f} MiB/s written and synced, {sync_s * 1e3:.1f} ms for a small file"
    if "eatmydata" in os.environ.get("LD_PRELOAD", ""):
        words = "fsync does nothing, as LD_PRELOAD names libeatmydata: a checkpoint would not outlast a crash"
        yield fail(f"{called}: fsync", words, "unset LD_PRELOAD")
    elif speed < SLOW_MIB_S or sync_s > SLOW_SYNC_S:
        yield warn(f"{called}: speed", words, "name a faster disk, or save more rarely (run.checkpoint_every)")
    else:
        yield ok(f"{called}: speed", words)
    noted = small.stat().st_mtime
    skew = noted - min(max(noted, before), after)
    if abs(skew) > SKEW_S:
        words = f"its server's clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} this machine's"
        yield warn(f"{called}: clock", words, "let chrony or ntpd set both")
    with small.open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            words = f"{place} knows no locks ({error.strerror}): two runs of one name are not kept apart"
            yield warn(f"{called}: locks", words, "let no two runs have one name, or mount it with locks")


class _NotSynced(Exception):
    """What fsync said."""


def _written(path: Path, size: int) -> tuple[int, float]:
    """Write so many bytes, or for WRITING_S; how many, and the seconds that they took to the disk."""
    block = os.urandom(min(size, 16 * MIB))
    begun, written = time.perf_counter(), 0
    with path.open("wb") as file:
        while written < size and time.perf_counter() - begun < WRITING_S:
            written += file.write(block)
            file.flush()
            try:
                os.fsync(file.fileno())  # of each block: one at the end would write it all, however long that takes
            except OSError as error:
                raise _NotSynced(error.strerror) from None
    return written, time.perf_counter() - begun
