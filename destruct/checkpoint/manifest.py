"""The manifest of a checkpoint: which files it holds, their sizes and digests; its own digest lies beside it."""

import hashlib
import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any

import xxhash

from destruct.durable import sync

NAME = "manifest.json"
CHECK = "manifest.sha256"  # as `sha256sum --check` reads it
FILES = "files"
THREADS = 4
"""Files that are hashed at a time, which needs no interpreter's lock."""

DIGESTS: dict[str, Callable[[], Any]] = {"sha256": hashlib.sha256, "xxh3_128": xxhash.xxh3_128}
"""Of every file, both.  The second is what a start waits for: as good against what happens by itself, and many times
faster; the first is for tools that people have, and for a look at leisure."""

Tell = Callable[[int], None]
"""Is told of the bytes read since the last call, now and then."""

TOLD = 2**24
"""Bytes after which it is."""

CHUNK = 2**18
"""Bytes that are read at a time: they stay in the cache of a core."""


class Damaged(Exception):
    """One line: which file of a checkpoint is not what was saved, and in what."""

    def __init__(self, path: Path, what: str):
        super().__init__(f"{path} is not the file that was saved: {what}")


def digests(path: Path, kinds: Iterable[str] = DIGESTS, tell: Tell | None = None) -> dict[str, str]:
    """Digests of a file by their kind, in hexadecimal."""
    found = {kind: DIGESTS[kind]() for kind in kinds}
    buffer = memoryview(bytearray(CHUNK))
    untold = 0
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            for digest in found.values():
                digest.update(buffer[:size])
            untold += size
            if tell is not None and untold >= TOLD:
                tell(untold)
                untold = 0
    if tell is not None:
        tell(untold)
    return {kind: digest.hexdigest() for kind, digest in found.items()}


def digest(path: Path, kind: str = "sha256", tell: Tell | None = None) -> str:
    """One digest of a file, in hexadecimal."""
    return digests(path, [kind], tell)[kind]


def seal(folder: Path, facts: dict[str, Any]) -> None:
    """Write the manifest of everything below `folder`, all of it synced to disk.

    Args:
        facts: what identifies the checkpoint: run, update, world size, backend.
    """

    def entry(name: str) -> dict[str, Any]:
        path = folder / name
        sync(path)
        return {"size": path.stat().st_size, **digests(path)}

    names = sorted(_names(folder))
    with ThreadPoolExecutor(THREADS) as pool:
        files = dict(zip(names, pool.map(entry, names), strict=True))
    manifest = folder / NAME
    manifest.write_text(json.dumps({**facts, FILES: files}, indent=1), encoding="utf-8")
    sync(manifest)
    (folder / CHECK).write_text(_check_line(manifest), encoding="utf-8")
    sync(folder / CHECK)
    for directory in (folder, *(p for p in folder.rglob("*") if p.is_dir())):
        sync(directory)


def read(folder: Path) -> dict[str, Any]:
    """The manifest, after it was held against its digest, and against the names and sizes of what lies there.

    Raises:
        Damaged: naming the first file that is missing, of another size, or not of this checkpoint.
    """
    path = folder / NAME
    if links := [each for each in (path, folder / CHECK) if each.is_symlink()]:
        raise Damaged(links[0], "it is a link")
    try:
        if (folder / CHECK).read_bytes() != _check_line(path).encode():
            raise Damaged(path, f"its digest is not that of {CHECK}")
        manifest = json.loads(path.read_text(encoding="utf-8"))
        there = _names(folder) - {NAME, CHECK}
    except OSError as error:
        raise Damaged(Path(error.filename or path), f"it cannot be read: {error.strerror}") from None
    for name, saved in manifest[FILES].items():
        if name not in there or not _contained(folder, name):
            raise Damaged(folder / name, "it is missing")
        if (size := (folder / name).stat().st_size) != saved["size"]:
            raise Damaged(folder / name, f"{size} bytes instead of {saved['size']}")
    if added := sorted(there - manifest[FILES].keys()):
        raise Damaged(folder / added[0], f"{NAME} does not list it")
    return manifest


def check(
    folder: Path,
    manifest: dict[str, Any],
    names: Iterable[str],
    kind: str = "xxh3_128",
    tell: Tell | None = None,
) -> None:
    """Hold files against their digests.

    Args:
        manifest: what `read` gave.
        names: of the files.
        kind: of the digest.
        tell: one call at a time, of any thread.

    Raises:
        Damaged: naming the first one, in their order, that was altered or cannot be read.
    """

    telling = Lock()

    def told(size: int) -> None:
        if tell is not None:
            with telling:
                tell(size)

    def fault(name: str) -> str | None:
        try:
            entry = manifest[FILES][name]
            known = kind if kind in entry else "sha256"  # older ones have that alone
            return None if digest(folder / name, known, told) == entry[known] else "its digest is another one"
        except OSError as error:
            return f"it cannot be read: {error.strerror}"

    names = list(names)
    pool = ThreadPoolExecutor(THREADS)
    try:
        for name, what in zip(names, pool.map(fault, names), strict=True):
            if what is not None:
                raise Damaged(folder / name, what)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # after Ctrl-C nobody waits for hundreds of gigabytes


def verify(folder: Path, tell: Tell | None = None) -> dict[str, Any]:
    """The manifest, after everything was held against it, by SHA-256; `tell` as for `check`.

    Raises:
        Damaged: naming the first file that is not as it was saved.
    """
    manifest = read(folder)
    check(folder, manifest, manifest[FILES], "sha256", tell)
    return manifest


def _names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()}


def _contained(folder: Path, name: str) -> bool:
    """Whether a name leads to a file below the folder, through no link."""
    parts = PurePosixPath(name)
    links = ((folder / part).is_symlink() for part in (parts, *parts.parents[:-1]))
    return not parts.is_absolute() and ".." not in parts.parts and not any(links)


def _check_line(manifest: Path) -> str:
    return f"{digest(manifest)}  {NAME}\n"
