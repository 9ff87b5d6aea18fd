"""Reads what each source gives next while the run computes; which source is next is decided when a batch is drawn.

Nothing here is state: a batch is a pure function of its `Draw`, and what was read ahead can be read again.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from destruct.batch import PromptBatch, TokenWindows
from destruct.data.mixture import Draw, Mixture
from destruct.data.order import Order, Shuffled
from destruct.data.windows import PackedWindows, PieceBatch
from destruct.seeding import permuted

Int64 = NDArray[np.int64]

CHUNK_TOKENS = 1 << 17
"""Of a source, read at a time."""


class Windows(Protocol):
    """What a loader reads: the pieces of a store or of a stream."""

    prompt_tokens: int
    """P."""

    @property
    def window_tokens(self) -> int:
        """T."""

    def read(self, index: Int64) -> PieceBatch:
        """The pieces at `index` (n,).  Raises DestructError where a stream cannot be read."""

    def release(self) -> None:
        """Let go of what was looked at."""


class Loader:
    """The windows of S sources, read ahead by a thread.

    Args:
        sources: pieces of each source.
        orders: in which they are drawn.
    """

    def __init__(self, sources: Sequence[Windows], orders: Sequence[Order]):
        self._sources, self._orders = list(sources), list(orders)
        self._window_tokens, self._prompt_tokens = sources[0].window_tokens, sources[0].prompt_tokens
        self._chunk = max(16, CHUNK_TOKENS // self._window_tokens)
        self._thread = ThreadPoolExecutor(1, "read ahead")
        self._ahead: list[dict[int, Future[PieceBatch]]] = [{} for _ in sources]

    def read(self, draw: Draw, device: torch.device) -> PromptBatch:
        """The windows of a draw, in its order; those that follow are then read in the background."""
        size = len(draw.source)
        whole = PieceBatch(*(np.empty(shape, np.int64) for shape in ((size, self._window_tokens), size, size)))
        for source in np.unique(draw.source).tolist():
            mine = (draw.source == source).nonzero()[0]
            chunks, places = np.divmod(draw.ordinal[mine], self._chunk)
            for chunk in np.unique(chunks).tolist():
                rows, taken = mine[chunks == chunk], places[chunks == chunk]
                pieces = self._submitted(source, chunk).result()
                whole.tokens[rows] = pieces.tokens[taken]
                whole.prompt_lengths[rows] = pieces.prompt_lengths[taken]
                whole.continuation_lengths[rows] = pieces.continuation_lengths[taken]
            self._go_on_from(source, int(chunks[-1]))
        return prompt_batch(whole, draw.number, draw.source, draw.sample, self._prompt_tokens, device)

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(cancel_futures=True)

    def _submitted(self, source: int, chunk: int) -> Future[PieceBatch]:
        """The pieces of one chunk of a source's ordinals, being read."""
        ahead = self._ahead[source]
        if chunk not in ahead:
            ahead[chunk] = self._thread.submit(self._read, source, chunk)
        return ahead[chunk]

    def _go_on_from(self, source: int, chunk: int) -> None:
        """Forget what was drawn, and have the next chunk read."""
        for gone in [number for number in self._ahead[source] if number < chunk]:
            del self._ahead[source][gone]
        self._submitted(source, chunk + 1)

    def _read(self, source: int, chunk: int) -> PieceBatch:
        pieces = self._sources[source]
        read = pieces.read(self._orders[source].windows(chunk * self._chunk, self._chunk))
        pieces.release()
        return read


def prompt_batch(
    pieces: PieceBatch, draw: int, source: Int64, sample: Int64, prompt_tokens: int, device: torch.device
) -> PromptBatch:
    """Pieces as the rollouts read them; the other arguments are the fields of `PromptBatch`."""
    windows, prompts, continuations, sources, samples = (
        torch.from_numpy(numbers).to(device)
        for numbers in (pieces.tokens, pieces.prompt_lengths, pieces.continuation_lengths, source, sample)
    )
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

    def select(self, items: Tensor | Int64) -> TokenWindows:
        """The windows at `items` (n,) int64 of that order."""
        tokens, positions = self._packed.read(permuted(np.asarray(items), len(self), self._key))
        self._packed.release()
        return TokenWindows(torch.from_numpy(tokens), torch.from_numpy(positions))


def language_mixture(names: Sequence[str], sources: Sequence[LanguageWindows], seed: int) -> Mixture:
    """Draws from the windows of each source, for ever."""
    return Mixture([Shuffled(name, len(source), seed) for name, source in zip(names, sources, strict=True)])


def read_language(sources: Sequence[LanguageWindows], draw: Draw) -> TokenWindows:
    """The windows of a draw from `language_mixture`, in its order."""
    parts = {number: (draw.source == number).nonzero()[0] for number in np.unique(draw.source).tolist()}
    read = [sources[number].select(draw.index[places]) for number, places in parts.items()]
    back = torch.from_numpy(np.concatenate(list(parts.values())).argsort())
    tokens, positions = (torch.cat([getattr(part, name) for part in read]) for name in ("tokens", "positions"))
    return TokenWindows(tokens, positions).select(back)
