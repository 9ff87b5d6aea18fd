"""The pieces of a stream, shard by shard: while one shard is drawn from, a thread makes the next one."""

import json
import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from destruct.data.order import SHARD
from destruct.data.stream_shards import StreamShards
from destruct.data.token_cache import CachedSource
from destruct.data.windows import PieceBatch, Pieces

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]

_OPEN = 3  # shards besides the first: that of the draw, that of what is read ahead of it, and the one after
_SAY_AFTER_S = 5.0


@dataclass(frozen=True, slots=True)
class _Counts:
    """What is known of a shard whose tokens are gone."""

    pieces: int
    tokens: int
    left_out: int


class StreamPieces:
    """What `Pieces` is of one store, of a stream; an index is shard * SHARD + piece of the shard.

    What can be known of the whole, such as its length, is that of the shards that have been read.

    Args:
        shards: the stream.
        first: the pieces of its first shard; those of the others are cut likewise.
        head_start_s: how long this process leaves it to another one to begin making a shard.
        say: told, in a line, when a shard is long in coming.
    """

    def __init__(
        self,
        shards: StreamShards,
        first: Pieces,
        head_start_s: float = 0.0,
        say: Callable[[str], None] = lambda _: None,
    ):
        self.prompt_tokens, self.window_tokens = first.prompt_tokens, first.window_tokens
        self._shards, self._first, self._head_start_s, self._say = shards, first, head_start_s, say
        self._open: OrderedDict[int, Pieces] = OrderedDict({0: first})  # the one used last stands last
        self._counts = {0: _Counts(len(first), first.tokens, first.left_out)}
        self._making: dict[int, Future[Pieces | None]] = {}
        self._using = threading.Lock()  # one thread draws, another reads ahead
        self._thread = ThreadPoolExecutor(1, "next shard")
        self._closing = threading.Event()

    def __len__(self) -> int:
        return sum(counts.pieces for counts in self._known)

    @property
    def _known(self) -> list[_Counts]:
        return list(self._counts.values())  # at once: the thread may add to them

    @property
    def left_out(self) -> int:
        """As `Pieces.left_out`."""
        return sum(counts.left_out for counts in self._known)

    @property
    def mean_size(self) -> float:
        """As `Pieces.mean_size`."""
        return sum(counts.tokens for counts in self._known) / max(1, len(self) * self.window_tokens)

    def count(self, shard: int) -> int | None:
        """Pieces of a shard, whose tokens may be gone; None behind the last one.

        Raises:
            DestructError: as `StreamShards.open`.
        """
        known = self._counts.get(shard) or self._remembered(shard)
        if known is None:
            if self._at(shard) is None:
                return None
            known = self._counts[shard]
        self._counts[shard] = known
        return known.pieces

    def sizes(self, index: Int64) -> Float64:
        """As `Pieces.sizes`; errors are those of `count`."""
        sizes = np.empty(len(index))
        for pieces, rows, within in self._by_shard(index):
            sizes[rows] = pieces.sizes(within)
        return sizes

    def read(self, index: Int64) -> PieceBatch:
        """The pieces at `index` (n,); the shard behind them is then made.  Errors are those of `count`."""
        n = len(index)
        whole = PieceBatch(*(np.empty(shape, np.int64) for shape in ((n, self.window_tokens), n, n)))
        for pieces, rows, within in self._by_shard(index):
            part = pieces.read(within)
            whole.tokens[rows] = part.tokens
            whole.prompt_lengths[rows] = part.prompt_lengths
            whole.continuation_lengths[rows] = part.continuation_lengths
        with self._using:
            # Not where windows are merely looked up: a run that resumes looks at the first shard before its own.
            if n and (following := int(index[-1] // SHARD) + 1) not in self._open:
                self._submitted(following)
        return whole

    def release(self) -> None:
        """As `TokenStore.release`."""
        with self._using:
            opened = list(self._open.values())
        for pieces in opened:
            pieces.release()

    def close(self) -> None:
        """End the thread, and leave what it is making."""
        self._closing.set()
        self._thread.shutdown(cancel_futures=True)
        self._shards.close()

    def _by_shard(self, index: Int64) -> Iterator[tuple[Pieces, Int64, Int64]]:
        """Each shard's pieces, the places in `index` that are of it, and which of its pieces they are."""
        shards, within = np.divmod(index, SHARD)
        for shard in np.unique(shards).tolist():
            pieces = self._at(shard)
            if pieces is None:
                raise IndexError(f"shard {shard} lies behind the end of the stream")
            rows = (shards == shard).nonzero()[0]
            yield pieces, rows, within[rows]

    def _at(self, shard: int) -> Pieces | None:
        """A shard's pieces, waited for where they are not there."""
        with self._using:
            pieces = self._open.get(shard)
            making = self._submitted(shard) if pieces is None else None
        if making is not None:
            pieces = self._result(shard, making)
        if pieces is None:
            return None
        self._shards.touch(shard)
        with self._using:
            self._open[shard] = pieces
            self._open.move_to_end(shard)
            self._making.pop(shard, None)
            for old in [number for number in self._open if number][:-_OPEN]:
                del self._open[old]
        return pieces

    def _submitted(self, shard: int) -> "Future[Pieces | None]":
        """A shard on its way; `_using` is held."""
        if shard not in self._making:
            self._making[shard] = self._thread.submit(self._make, shard)
        return self._making[shard]

    def _result(self, shard: int, making: "Future[Pieces | None]") -> Pieces | None:
        if making.done() and making.exception() is not None:
            # It failed when nobody needed it yet.  Meanwhile the hub may be back, or there is room on the disk.
            with self._using:
                if self._making.get(shard) is making:
                    del self._making[shard]
                making = self._submitted(shard)
        with suppress(NotYet):
            return making.result(timeout=_SAY_AFTER_S)
        self._say(f"source {self._shards.name!r}: waiting for shard {shard} of its stream")
        return making.result()

    def _make(self, shard: int) -> Pieces | None:
        """Runs in the thread; errors are raised where the shard is needed."""
        return self._shards.open(shard, self._indexed(shard), self._watch, self._head_start_s)

    def _indexed(self, shard: int) -> Callable[[CachedSource], Pieces]:
        def indexed(stores: CachedSource) -> Pieces:
            pieces = self._first.of(stores.train)
            self._remember(shard, _Counts(len(pieces), pieces.tokens, pieces.left_out))
            return pieces

        return indexed

    def _watch(self, documents: int, tokens: int) -> None:
        if self._closing.is_set():
            raise CancelledError

    def _file(self, shard: int) -> Path:
        return self._shards.path(shard, f".{self._first.kind}.json")

    def _remember(self, shard: int, counts: _Counts) -> None:
        """Ranks may do so at once: each renames what it wrote, and all have written the same."""
        self._counts[shard] = counts
        file = self._file(shard)
        if not file.exists():
            with tempfile.NamedTemporaryFile("w", dir=file.parent, prefix=f"{file.name}.", delete=False) as out:
                json.dump(asdict(counts), out)
            os.replace(out.name, file)

    def _remembered(self, shard: int) -> _Counts | None:
        with suppress(OSError, ValueError, TypeError):
            return _Counts(**json.loads(self._file(shard).read_text(encoding="utf-8")))
        return None
