"""Tokens of documents on the disk: written once, one after another, then mapped into memory by every rank.

tokens.bin    the documents' tokens, one after another: uint16 where the vocabulary allows it, else int32
starts.bin    int64, where each document begins, and where the last one ends
prompts.bin   int32, tokens of each document that are its prompt, ANYWHERE where any place will do
facts.json    counts, digest and sizes: written last
"""

import hashlib
import json
import mmap
import os
import weakref
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from destruct.durable import sync

ANYWHERE = -1
"""A document without a prompt of its own: it may be cut at any place."""
FACTS = "facts.json"
_WIDTHS = {"starts": np.int64, "prompts": np.int32}

Int64 = NDArray[np.int64]
Tokens = NDArray[np.uint16] | NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """What is known of a store without reading it."""

    documents: int
    tokens: int
    dtype: str
    """Of the tokens: uint16 or int32."""
    bos_id: int | None
    """The token that every document begins with; None where one begins otherwise."""
    digest: str
    """BLAKE2b-128 of tokens, starts, prompts and bos_id, in hexadecimal."""


class TokenStore:
    """The documents of one split of a source, mapped from a folder that a `StoreWriter` filled.

    Raises:
        OSError: a file is missing or not readable.
        ValueError: a file is not of the size that the facts tell, so the folder is not a whole store.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.facts = StoreFacts(**json.loads((folder / FACTS).read_text(encoding="utf-8")))
        sizes = {"tokens": self.facts.tokens, "starts": self.facts.documents + 1, "prompts": self.facts.documents}
        self._handle = os.open(folder / "tokens.bin", os.O_RDONLY)
        weakref.finalize(self, os.close, self._handle)
        self.tokens, self.starts, self.prompts = (
            map_array(folder / f"{name}.bin", _WIDTHS.get(name, self.facts.dtype), size) for name, size in sizes.items()
        )

    def read_rows(self, rows: Tokens, columns: Int64, begins: Int64, counts: Int64) -> None:
        """Fill parts of rows with tokens.

        They are read and not looked at through the map: other threads go on meanwhile, the page cache around a window
        does not become this process's memory, and a file that was cut short is an error and not a dead process.

        Args:
            rows: (n, T) of the store's dtype, to be filled.
            columns, begins, counts: (n,), column `c` of a row on gets `count` tokens from address `begin` on.

        Raises:
            OSError: the disk fails, or the file was cut short.
        """
        size, handle = rows.itemsize, self._handle
        for row, column, begin, count in zip(rows, columns.tolist(), begins.tolist(), counts.tolist(), strict=True):
            if os.preadv(handle, [row[column : column + count]], begin * size) < count * size:
                raise OSError(f"{self.folder / 'tokens.bin'} was cut short")

    def document(self, number: int) -> NDArray[np.int64]:
        """The tokens (n,) of one document, its eos included."""
        return self.tokens[self.starts[number] : self.starts[number + 1]].astype(np.int64)

    def release(self) -> None:
        """Let go of the pages that were looked at, which the system keeps cached: this process stays small however much
        of the store it reads."""
        for array in (self.tokens, self.starts, self.prompts):
            release(array)


def map_array(file: Path, dtype: DTypeLike, size: int) -> np.ndarray:
    """A file of `size` numbers as an array (size,) that is read from the disk where it is looked at.

    Raises:
        OSError: it cannot be read.
        ValueError: it is of another size.
    """
    wanted = size * np.dtype(dtype).itemsize
    with file.open("rb") as opened:
        held = os.fstat(opened.fileno()).st_size
        if held != wanted:
            raise ValueError(f"{file} has {held:,} bytes in place of {wanted:,}")
        if not size:  # what is empty cannot be mapped
            return np.empty(0, dtype)
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(mapped, dtype)


def release(array: np.ndarray) -> None:
    """Take the pages of a `map_array` out of this process's memory; they come back when they are looked at."""
    mapped = getattr(array.base, "obj", None)
    if isinstance(mapped, mmap.mmap):
        mapped.madvise(mmap.MADV_DONTNEED)


class StoreWriter:
    """Writes a store into an empty folder, document by document.

    Args:
        vocab_size: decides the width of a token.
        bos_id: that documents may begin with; None where the tokenizer has none.
    """

    def __init__(self, folder: Path, vocab_size: int, bos_id: int | None):
        folder.mkdir(parents=True)
        self.folder = folder
        self._dtype = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.int32)
        self._bos_id = bos_id
        self._digests = {name: hashlib.blake2b(digest_size=16) for name in ("tokens", *_WIDTHS)}
        self._files: dict[str, BinaryIO] = {name: (folder / f"{name}.bin").open("wb") for name in self._digests}
        self._documents = self._tokens = 0
        self._write("starts", np.zeros(1, np.int64))

    def add(self, documents: Sequence[NDArray[np.int32]], prompts: Sequence[int]) -> None:
        """Append documents, each (n_i,) int32 with n_i >= 1 and its eos, and their `prompts.bin` entries.

        Raises:
            OSError: the disk is full.
        """
        if not documents:
            return
        lengths = np.fromiter(map(len, documents), np.int64, len(documents))
        joined = np.concatenate(documents)
        starts = self._tokens + np.cumsum(lengths)
        if self._bos_id is not None and (joined[starts - lengths - self._tokens] != self._bos_id).any():
            self._bos_id = None
        self._tokens, self._documents = int(starts[-1]), self._documents + len(documents)
        self._write("tokens", joined.astype(self._dtype))
        self._write("starts", starts)
        self._write("prompts", np.array(prompts, np.int32))

    @property
    def tokens(self) -> int:
        """Written so far."""
        return self._tokens

    def finish(self) -> StoreFacts:
        """Put everything on the disk; the folder is a store from here on.

        Raises:
            OSError: the disk is full.
        """
        for name, file in self._files.items():
            file.close()
            sync(self.folder / f"{name}.bin")
        bos_id = self._bos_id if self._documents else None
        digest = hashlib.blake2b(f"bos {bos_id}".encode(), digest_size=16)  # windows inside a document begin with it
        for content in self._digests.values():
            digest.update(content.digest())
        facts = StoreFacts(self._documents, self._tokens, self._dtype.name, bos_id, digest.hexdigest())
        (self.folder / FACTS).write_text(json.dumps(asdict(facts)), encoding="utf-8")
        sync(self.folder / FACTS)
        sync(self.folder)
        return facts

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def _write(self, name: str, numbers: np.ndarray) -> None:
        content = numbers.tobytes()
        self._files[name].write(content)
        self._digests[name].update(content)
