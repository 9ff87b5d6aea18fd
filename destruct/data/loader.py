"""Reads what each source gives next while the run computes; which source is next is decided when a batch is drawn.

Nothing here is state: a batch is a pure function of its `Draw`, and what was read ahead can be read again.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from destruct.batch import PromptBatch, TokenWindows
from destruct.data.mixture import Draw
from destruct.data.order import Order, Shuffled
from destruct.data.store import Tokens
from destruct.data.windows import PackedWindows, PieceBatch
from destruct.errors import DestructError
from destruct.exits import Exit
from destruct.seeding import permuted

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]

CHUNK_TOKENS = 1 << 17
"""Of a source, read at a time."""


ReadT = TypeVar("ReadT", covariant=True)


class Readable(Protocol[ReadT]):
    """Windows of a source, by number."""

    @property
    def window_tokens(self) -> int:
        """T."""

    def read(self, index: Int64) -> ReadT:
        """Those at `index` (n,).  Raises DestructError where a stream cannot be read."""

    def release(self) -> None:
        """As `TokenStore.release`."""


class PieceWindows(Readable[PieceBatch], Protocol):
    """The pieces of a store or of a stream."""

    prompt_tokens: int
    """P."""


class _Ahead(Generic[ReadT]):
    """Chunks of the windows of S sources, each read once, by a thread, before it is asked for."""

    def __init__(self, sources: Sequence[Readable[ReadT]], orders: Sequence[Order]):
        self._sources, self._orders = list(sources), list(orders)
        self._chunk = max(16, CHUNK_TOKENS // sources[0].window_tokens)
        self._thread = ThreadPoolExecutor(1, "read ahead")
        self._submitted: list[dict[int, Future[ReadT]]] = [{} for _ in sources]

    def parts(self, draw: Draw) -> Iterator[tuple[Int64, ReadT, slice]]:
        """Rows of the draw, a chunk, and which of its windows they are; the chunks that follow are then read."""
        for source in range(len(self._sources)):
            mine = (draw.source == source).nonzero()[0]
            if not len(mine):
                continue
            first, last = int(draw.ordinal[mine[0]]), int(draw.ordinal[mine[-1]]) + 1  # and all between
            for chunk in range(first // self._chunk, (last - 1) // self._chunk + 1):
                begin, end = max(first, chunk * self._chunk), min(last, (chunk + 1) * self._chunk)
                taken = slice(begin - chunk * self._chunk, end - chunk * self._chunk)
                yield mine[begin - first : end - first], self._submit(source, chunk).result(), taken
            self._go_on_from(source, (last - 1) // self._chunk)

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(cancel_futures=True)

    def _submit(self, source: int, chunk: int) -> Future[ReadT]:
        submitted = self._submitted[source]
        if chunk not in submitted:
            submitted[chunk] = self._thread.submit(self._read, source, chunk)
        return submitted[chunk]

    def _go_on_from(self, source: int, chunk: int) -> None:
        """Forget what was drawn, and have the next chunk read."""
        for gone in [number for number in self._submitted[source] if number < chunk]:
            del self._submitted[source][gone]
        self._submit(source, chunk + 1)

    def _read(self, source: int, chunk: int) -> ReadT:
        order = self._orders[source]
        try:
            read = self._sources[source].read(order.windows(chunk * self._chunk, self._chunk))
        except OSError as error:
            raise DestructError(
                f"source {order.name!r}: its token cache cannot be read any more: {error.strerror or error}",
                "look after the disk of data.cache, or remove the cache, then resume",
                Exit.ENVIRONMENT,
            ) from error
        self._sources[source].release()
        return read


class Loader:
    """The pieces of S sources, read ahead by a thread.

    Args:
        sources: pieces of each source.
        orders: in which they are drawn.
    """

    def __init__(self, sources: Sequence[PieceWindows], orders: Sequence[Order]):
        self._window_tokens, self._prompt_tokens = sources[0].window_tokens, sources[0].prompt_tokens
        self._ahead: _Ahead[PieceBatch] = _Ahead(sources, orders)

    def read(self, draw: Draw, device: torch.device) -> PromptBatch:
        """The windows of a draw, in its order; those that follow are then read in the background."""
        size = len(draw.source)
        whole = PieceBatch(*(np.empty(shape, np.int64) for shape in ((size, self._window_tokens), size, size)))
        for rows, pieces, taken in self._ahead.parts(draw):
            whole.tokens[rows] = pieces.tokens[taken]
            whole.prompt_lengths[rows] = pieces.prompt_lengths[taken]
            whole.continuation_lengths[rows] = pieces.continuation_lengths[taken]
        return prompt_batch(whole, draw.number, draw.source, draw.sample, self._prompt_tokens, device)

    def close(self) -> None:
        """End the thread."""
        self._ahead.close()


def prompt_batch(
    pieces: PieceBatch, draw: int, source: Int64, sample: Int64, prompt_tokens: int, device: torch.device
) -> PromptBatch:
    """Pieces as the rollouts read them; the other arguments are the fields of `PromptBatch`."""
    tokens = pieces.tokens.astype(np.int64, copy=False)
    numbers = (tokens, pieces.prompt_lengths, pieces.continuation_lengths, source, sample)
    windows, prompts, continuations, sources, samples = (torch.from_numpy(each).to(device) for each in numbers)
    return PromptBatch(draw, prompt_tokens, windows, prompts, continuations, sources, samples)


class LanguageWindows:
    """The packed windows of one source in a fixed random order, so that the first n of them are a sample.

    Neighbours come from one document: a panel of them had three times the error that its variance claims.

    Args:
        packed: the windows.
        key: 64 bits that name the order.
    """

    def __init__(self, packed: PackedWindows, key: int):
        self._packed, self._key = packed, key

    def __len__(self) -> int:
        return len(self._packed)

    @property
    def window_tokens(self) -> int:
        """T."""
        return self._packed.length

    def read(self, index: Int64) -> tuple[Tokens, Int32]:
        """As `PackedWindows.read`, at `index` (n,) of that order."""
        return self._packed.read(permuted(index, len(self), self._key))

    def release(self) -> None:
        """As `TokenStore.release`."""
        self._packed.release()

    def select(self, items: Tensor | Int64) -> TokenWindows:
        """The windows at `items` (n,) int64 of that order."""
        read = self.read(np.asarray(items))
        self.release()
        return TokenWindows(*(torch.from_numpy(part.astype(np.int64)) for part in read))


class LanguageLoader:
    """The packed windows of S sources, read ahead by a thread.

    Args:
        sources: windows of each source.
        orders: in which they are drawn.
    """

    def __init__(self, sources: Sequence[LanguageWindows], orders: Sequence[Order]):
        self._window_tokens = sources[0].window_tokens
        self._ahead: _Ahead[tuple[Tokens, Int32]] = _Ahead(sources, orders)

    def read(self, draw: Draw) -> TokenWindows:
        """The windows of a draw, in its order; those that follow are then read in the background."""
        tokens, positions = (np.empty((len(draw.source), self._window_tokens), np.int64) for _ in range(2))
        for rows, read, taken in self._ahead.parts(draw):
            tokens[rows], positions[rows] = read[0][taken], read[1][taken]
        return TokenWindows(torch.from_numpy(tokens), torch.from_numpy(positions))

    def close(self) -> None:
        """End the thread."""
        self._ahead.close()


def language_orders(names: Sequence[str], sources: Sequence[LanguageWindows], seed: int) -> list[Order]:
    """Every window of each source once an epoch, for ever."""
    return [Shuffled(name, len(source), seed) for name, source in zip(names, sources, strict=True)]
