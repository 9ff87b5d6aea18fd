"""Windows of T = P + R tokens on a source's stored documents: what language modelling and rollouts read.

`PackedWindows` fills every window from the stream of documents; `Pieces` keeps each to one document, so that a prompt
begins where its document does.  Neither holds more in memory than what it is asked for, once `release` was called.
"""

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from destruct.data.store import ANYWHERE, Tokens, TokenStore, map_array, release
from destruct.durable import sync

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]

_CODE = hashlib.blake2b(Path(__file__).read_bytes(), digest_size=4).hexdigest()  # decides how pieces are cut
_AT_ONCE = 1 << 16  # documents looked through at a time while pieces are counted


class PackedWindows:
    """The stream of a store's documents, cut every T - 1 tokens into windows of T.

    A window's last token is the next one's first, so that every token but those that begin a document is predicted
    once.  Where the documents begin with a bos and a window begins inside one, a bos stands in its first place.

    Args:
        store: the documents.
        length: T, at least 2.
    """

    def __init__(self, store: TokenStore, length: int):
        if length < 2:
            raise ValueError(f"PackedWindows: length is {length}; it must be at least 2")
        self._store, self.length = store, length
        self._count = max(0, store.facts.tokens - 1) // (length - 1)  # what is left at the end fills none

    def __len__(self) -> int:
        return self._count

    def read(self, index: Int64) -> tuple[Tokens, Int32]:
        """The windows at `index` (n,).

        Returns:
            tokens: (n, T) in the store's dtype.
            positions: (n, T), the place of each token in its document, or in the part of it that the window holds.
        """
        store, (n, t) = self._store, (len(index), self.length)
        index = np.asarray(index, np.int64)
        begins = index * (t - 1)
        tokens = np.empty((n, t), store.tokens.dtype)
        store.read_rows(tokens, np.zeros(n, np.int64), begins, np.full(n, t))
        # Documents that begin inside a window: from the first one behind its first token to the last in it.
        first = np.searchsorted(store.starts, begins, side="right")
        last = np.searchsorted(store.starts, begins + t - 1, side="right")
        inside = last - first
        row = np.repeat(np.arange(n), inside)
        document = np.arange(len(row)) + np.repeat(first - (np.cumsum(inside) - inside), inside)
        place = np.sort(np.concatenate([np.arange(n) * t, store.starts[document] - begins[row] + row * t]))
        positions = np.arange(n * t, dtype=np.int32) - np.repeat(place.astype(np.int32), np.diff(place, append=n * t))
        positions = positions.reshape(n, t)
        if store.facts.bos_id is not None:
            tokens[:, 0] = store.facts.bos_id  # as at the beginning of a document anyway
        return tokens, positions

    def release(self) -> None:
        """As `TokenStore.release`."""
        self._store.release()


@dataclass(frozen=True, slots=True)
class PieceBatch:
    """n pieces of documents in rows of T = P + R columns: padding, prompt, continuation, padding."""

    tokens: Tokens | Int64
    """(n, T) in the store's dtype; the continuation begins in column P."""
    prompt_lengths: Int64
    """(n,) 1 to P: the prompt ends in column P - 1."""
    continuation_lengths: Int64
    """(n,) 0 to R."""


class Pieces:
    """A store's documents, cut into pieces of at most T tokens, each a prompt and what follows.

    Pieces are whole windows, which need no padding, but for a document's last one; where that would have less than the
    half of T, the last two are of equal length.

    A piece of n >= T tokens has a prompt of P; a shorter one is cut in the same proportion, into max(1, n P // T) and
    the rest.  A document with a prompt of its own is one piece, its continuation cut at R tokens; it is left out where
    its prompt has more than P.  Where documents begin with a bos, every piece does.

    Args:
        store: the documents.
        prompt_tokens: P.
        response_tokens: R.
        pad_id: fills the rest of a row.
        own_prompts: False cuts documents with a prompt of their own as if they had none.
    """

    def __init__(self, store: TokenStore, prompt_tokens: int, response_tokens: int, pad_id: int, own_prompts: bool):
        self._store, self._pad_id, self._own_prompts = store, pad_id, own_prompts
        self.prompt_tokens, self.response_tokens = prompt_tokens, response_tokens
        self._mapped = self._index()
        self._ends = self._mapped[:-2]  # pieces of the documents up to each one
        self.tokens, self.left_out = int(self._mapped[-2]), int(self._mapped[-1])
        """Of all pieces; and documents whose own prompt is too long."""

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def of(self, store: TokenStore) -> "Pieces":
        """Pieces of other documents, cut likewise."""
        return Pieces(store, self.prompt_tokens, self.response_tokens, self._pad_id, self._own_prompts)

    @property
    def kind(self) -> str:
        """What decides the pieces of given documents."""
        return f"pieces-{self.prompt_tokens}-{self.response_tokens}-{'own' if self._own_prompts else 'any'}-{_CODE}"

    @property
    def window_tokens(self) -> int:
        """T."""
        return self.prompt_tokens + self.response_tokens

    @property
    def mean_size(self) -> float:
        """Mean share of a window that a piece fills; the rest of the row is padding."""
        return self.tokens / max(1, len(self) * self.window_tokens)

    def sizes(self, index: Int64) -> Float64:
        """Tokens of the pieces at `index` (n,) as shares of T: (n,) in (0, 1]."""
        return self._spans(index).tokens / self.window_tokens

    def read(self, index: Int64) -> PieceBatch:
        """The pieces at `index` (n,)."""
        store, spans, bos_id = self._store, self._spans(index), self._store.facts.bos_id
        prompts = spans.prompt_tokens
        rows = np.full((len(index), self.window_tokens), self._pad_id, store.tokens.dtype)
        first, bos = self.prompt_tokens - prompts, int(bos_id is not None)
        if bos:
            rows[np.arange(len(rows)), first] = bos_id
        store.read_rows(rows, first + bos, spans.begins, spans.tokens - bos)
        return PieceBatch(rows, prompts, spans.tokens - prompts)

    def release(self) -> None:
        """As `TokenStore.release`."""
        self._store.release()
        release(self._mapped)

    def _spans(self, index: Int64) -> "_Spans":
        store, p, t = self._store, self.prompt_tokens, self.window_tokens
        bos = int(store.facts.bos_id is not None)
        document = np.searchsorted(self._ends, index, side="right")
        before = np.where(document > 0, self._ends[document - 1], 0)
        place, pieces = index - before, self._ends[document] - before
        start = store.starts[document] + bos
        body = store.starts[document + 1] - start
        begins, ends = (self._border(number, pieces, body) for number in (place, place + 1))
        tokens = ends - begins + bos
        prompts = np.where(tokens >= t, p, np.maximum(1, tokens * p // t))
        own = store.prompts[document].astype(np.int64)
        if self._own_prompts and (has_own := own != ANYWHERE).any():
            prompts = np.where(has_own, own, prompts)
            tokens = np.where(has_own, np.minimum(tokens, own + self.response_tokens), tokens)
        return _Spans(start + begins, tokens, prompts)

    def _border(self, number: Int64, pieces: Int64, body: Int64) -> Int64:
        """Where piece `number` of `pieces` begins in a document's `body`; its end for the one behind the last."""
        whole = self.window_tokens - int(self._store.facts.bos_id is not None)
        rest = body - (pieces - 1) * whole
        shared = (pieces > 1) & (2 * rest < whole)
        last = (pieces - 1) * whole - np.where(shared, whole - (whole + rest) // 2, 0)
        return np.where(number == pieces, body, np.where(number == pieces - 1, last, number * whole))

    def _index(self) -> Int64:
        """(documents + 2,): pieces of the documents up to each one, then tokens of all, and documents left out.

        It is made once and lies beside the documents; in memory where that folder cannot be written.
        """
        store, size = self._store, self._store.facts.documents + 2
        file = store.folder / f"{self.kind}.bin"
        with suppress(FileNotFoundError, ValueError):
            return map_array(file, np.int64, size)
        # Ranks may do this at once: each renames what it wrote, and all have written the same.
        stage = file.with_name(f"{file.name}.{secrets.token_hex(4)}.tmp")
        try:
            with stage.open("xb") as out:
                out.writelines(part.tobytes() for part in self._index_parts())
            sync(stage)
            os.replace(stage, file)
            return map_array(file, np.int64, size)
        except OSError:  # somebody else's cache, or a full disk
            return np.concatenate(list(self._index_parts()))
        finally:
            with suppress(OSError):
                stage.unlink()
            store.release()

    def _index_parts(self) -> Iterator[Int64]:
        count, totals = self._store.facts.documents, np.zeros(3, np.int64)
        for first in range(0, count, _AT_ONCE):
            pieces, tokens, left_out = self._count(slice(first, min(first + _AT_ONCE, count)))
            yield totals[0] + np.cumsum(pieces)
            totals += pieces.sum(), tokens, left_out
        yield totals[1:]

    def _count(self, documents: slice) -> tuple[Int64, int, int]:
        """Pieces of each of these documents; their tokens; documents that are left out."""
        store, bos = self._store, int(self._store.facts.bos_id is not None)
        length = np.diff(store.starts[documents.start : documents.stop + 1])
        pieces = -(-(length - bos) // (self.window_tokens - bos))
        tokens = length + (pieces - 1) * bos
        left_out = 0
        if self._own_prompts:
            own = store.prompts[documents].astype(np.int64)
            has_own, long = own != ANYWHERE, own > self.prompt_tokens
            pieces = np.where(has_own, ~long, pieces)
            tokens = np.where(has_own, np.minimum(length, own + self.response_tokens) * ~long, tokens)
            left_out = int(long.sum())
        return pieces, int(tokens.sum()), left_out


@dataclass(frozen=True, slots=True)
class _Spans:
    """Where pieces lie."""

    begins: Int64  # (n,) the address of each one's first token behind its bos
    tokens: Int64  # (n,) bos included
    prompt_tokens: Int64  # (n,)
