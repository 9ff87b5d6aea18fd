"""The manifest of a checkpoint: which files it holds, their sizes and digests; its own digest lies beside it."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from destruct.errors import DestructError

NAME = "manifest.json"
CHECK = "manifest.sha256"  # as `sha256sum --check` reads it


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(folder: Path, facts: dict[str, Any]) -> None:
    """Write the manifest of everything below `folder`, all of it synced to disk.

    Args:
        facts: what identifies the checkpoint: update, world size, backend.
    """
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": digest(path)}
        sync(path)
    manifest = folder / NAME
    manifest.write_text(json.dumps({**facts, "files": files}, indent=1), encoding="utf-8")
    sync(manifest)
    (folder / CHECK).write_text(_check_line(manifest), encoding="utf-8")
    sync(folder / CHECK)
    for directory in (folder, *(p for p in folder.rglob("*") if p.is_dir())):
        sync(directory)


def verify(folder: Path, remedy: str) -> dict[str, Any]:
    """Check the manifest against its digest and every file against the manifest, before anything is unpickled.

    Args:
        remedy: what to do where a file is not as it was.

    Returns:
        The manifest.

    Raises:
        DestructError: naming the first file that is missing, cut short or altered.
    """
    path = folder / NAME
    try:
        sealed = (folder / CHECK).read_bytes() == _check_line(path).encode()
    except OSError:
        sealed = False
    if not sealed:
        raise _damaged(path, remedy)
    manifest = json.loads(path.read_text(encoding="utf-8"))
    for name, want in manifest["files"].items():
        path = folder / name
        whole = path.is_file() and path.stat().st_size == want["size"] and digest(path) == want["sha256"]
        if not whole:
            raise _damaged(path, remedy)
    return manifest


def _check_line(manifest: Path) -> str:
    return f"{digest(manifest)}  {NAME}\n"


def _damaged(path: Path, remedy: str) -> DestructError:
    return DestructError(f"{path} is not the file that was saved (missing, cut short or altered)", remedy)


def sync(path: Path) -> None:
    """fsync a file or a directory."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
