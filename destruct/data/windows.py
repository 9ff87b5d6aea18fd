"""Documents packed into windows of equal length, one set of windows per source and split."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from destruct.config.data import DataConfig
from destruct.data.sources import Documents
from destruct.data.tokenizing import Tokenizer
from destruct.errors import DestructError


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows of one source, in document order (the mixture permutes them)."""

    tokens: NDArray[np.int32]
    """(n, T) int32, n >= 1; documents run on across windows, with an EOS after each."""
    dropped: int
    """Tokens at the end that fill no window."""

    def __post_init__(self) -> None:
        if self.tokens.ndim != 2 or 0 in self.tokens.shape or self.tokens.dtype != np.int32:
            raise ValueError(f"Windows.tokens is {self.tokens.dtype} {self.tokens.shape}; it must be int32 (n, T)")


@dataclass(frozen=True, slots=True)
class SourceData:
    """One source, ready to be drawn from."""

    name: str
    train: Windows
    validation: Windows
    learnable: bool
    """False: left out of the mean validation loss."""


def pack(name: str, encoded: Sequence[NDArray[np.int32]], length: int, eos_id: int) -> Windows:
    """Join documents, an EOS after each, and cut the stream into windows; the rest that fills none is dropped.

    Args:
        name: of the source and split, for the error.
        encoded: (n_i,) int32 tokens of each document.
        length: T, tokens of a window.
        eos_id: token put after each document.

    Raises:
        DestructError: the documents do not fill one window.
    """
    if length < 1:
        raise ValueError(f"pack: length is {length}; it must be at least 1")
    tokens = sum(map(len, encoded)) + len(encoded)
    if tokens < length:
        raise DestructError(
            f"source {name} has {tokens} tokens; one window takes {length}",
            "give it more text, or shorten the window (rollout.prompt_tokens + rollout.response_tokens)",
        )
    stream = np.full(tokens, eos_id, dtype=np.int32)
    start = 0
    for document in encoded:
        stream[start : start + len(document)] = document
        start += len(document) + 1
    count, dropped = divmod(tokens, length)
    return Windows(stream[: count * length].reshape(count, length), dropped)


def pack_sources(
    documents: Sequence[Documents], config: DataConfig, window_tokens: int, tokenizer: Tokenizer
) -> list[SourceData]:
    """Tokenize and pack loaded documents, in their order.

    Args:
        documents: of each source.
        config: the data section that they were loaded by.
        window_tokens: T = P + R, tokens of a window.
        tokenizer: shared by all sources.

    Raises:
        DestructError: a split of a source does not fill one window.
    """
    packed = []
    for source in documents:
        marked_up, eos = source.marked_up, tokenizer.eos_id
        train, validation = (
            pack(f"{source.name!r} ({split})", tokenizer.encode(texts, marked_up), window_tokens, eos)
            for split, texts in (("training", source.train), ("held out", source.validation))
        )
        learnable = config.sources[source.name].learnable
        packed.append(SourceData(source.name, train, validation, learnable))
    return packed
