"""What tells two data sets apart without making documents of them: digests of files, of code, and of all together."""

import hashlib
import importlib
import json
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import xxhash

from destruct.errors import DestructError
from destruct.exits import Exit

_BLOCK = 1 << 22  # bytes hashed at once
_SETTLED_NS = (
    2_000_000_000  # a file changed more recently may change again under the same time: some clocks tick in 2 s
)

CODE = (
    "data/documents.py",
    "data/files.py",
    "data/formatters.py",
    "data/holding_out.py",
    "data/loading.py",
    "data/sources.py",
    "data/stream.py",
    "data/tables.py",
    "seeding.py",
)
"""The files of this package whose text decides which documents become of given rows."""


def fingerprint(facts: Any) -> str:
    """32 hexadecimal digits of what JSON writes of the facts, in any order of their keys."""
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).hexdigest()


def code_digest() -> str:
    """Digest of the files in `CODE`."""
    package = Path(__file__).parents[1]
    return xxhash.xxh3_128_hexdigest(b"\0".join((package / file).read_bytes() for file in CODE))


def function_digest(path: str) -> str:
    """Digest of the module in which the user's `module:function` stands; what that imports is not looked at."""
    source = getattr(importlib.import_module(path.partition(":")[0]), "__file__", None)
    return path if source is None else f"{path} {xxhash.xxh3_128_hexdigest(Path(source).read_bytes())}"


def texts_digest(texts: list[str]) -> str:
    """Digest of texts, their order and where they end."""
    digest = xxhash.xxh3_128()
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()


def unreadable(name: str, file: Path, error: Exception) -> DestructError:
    """What the system says of a file, as an error that names it and its source."""
    return DestructError(
        f"source {name!r}: {file} cannot be read: {getattr(error, 'strerror', None) or error}",
        "look after its permissions and its disk, or name another path",
        Exit.ENVIRONMENT,
    )


class FileDigests:
    """XXH3-128 of files' contents; what was read once is known as long as `stat` says the same of the file.

    Args:
        folder: where that is remembered, in `files.json`; None to read every file.
    """

    def __init__(self, folder: Path | None = None):
        self._memory = None if folder is None else folder / "files.json"

    def __call__(self, name: str, file: Path) -> str:
        """32 hexadecimal digits.

        Args:
            name: key of the source in `data.sources`, for the error.

        Raises:
            DestructError: it cannot be read.
        """
        try:
            path, stat = os.path.realpath(file), stat_of(file)
            known = self._remembered().get(path)
            if isinstance(known, list) and known[:-1] == stat:
                return str(known[-1])
            started = time.time_ns()
            digest = _digest(file)
            if stat == stat_of(file) and max(stat[1:3]) < started - _SETTLED_NS:
                self._remember(path, [*stat, digest])
        except OSError as error:
            raise unreadable(name, file, error) from error
        return digest

    def _remembered(self) -> dict[str, Any]:
        if self._memory is None:
            return {}
        try:
            found = json.loads(self._memory.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # there is none yet, or a disk was full when it was written
            return {}
        return found if isinstance(found, dict) else {}

    def _remember(self, path: str, entry: list[Any]) -> None:
        """Several ranks may do so at once: each writes a file of its own and renames it, and the last one stays."""
        if self._memory is None:
            return
        with suppress(OSError):  # a folder that cannot be written costs time on the next start, and nothing else
            self._memory.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._memory.parent) as staging:
                staged = Path(staging, self._memory.name)
                staged.write_text(json.dumps(self._remembered() | {path: entry}, indent=0), encoding="utf-8")
                os.replace(staged, self._memory)


def stat_of(file: Path) -> list[int]:
    """Size, times of the last change to content and to anything in nanoseconds, and inode.  Raises OSError."""
    found = file.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _digest(file: Path) -> str:
    digest = xxhash.xxh3_128()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
