"""Stores of made-up documents."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from destruct.data.store import ANYWHERE, StoreWriter, TokenStore

BOS, EOS, PAD = 7, 1, 0


def store_of(
    folder: Path, documents: Sequence[Sequence[int]], prompts: Sequence[int] | None = None, vocab_size: int = 600
) -> TokenStore:
    """Token lists, each with its bos and eos already, as a store."""
    with StoreWriter(folder, vocab_size, BOS) as writer:
        arrays = [np.array(document, np.int32) for document in documents]
        writer.add(arrays, prompts if prompts is not None else [ANYWHERE] * len(arrays))
        writer.finish()
    return TokenStore(folder)


def random_documents(seed: int, count: int, longest: int, bos: bool) -> list[list[int]]:
    """Documents of 1 to `longest` tokens from 10 to 599, and an eos."""
    rng = np.random.default_rng(seed)
    return [
        [*([BOS] if bos else []), *rng.integers(10, 600, rng.integers(1, longest + 1)).tolist(), EOS]
        for _ in range(count)
    ]
