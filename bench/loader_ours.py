"""Warm: batches of our own from token caches, by weights that change with every batch.

Legend: S sources, B rows of a batch, T tokens of a window.
"""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from destruct.batch import PromptBatch
from destruct.data.loader import LanguageLoader, LanguageWindows, Loader, language_orders
from destruct.data.mixture import Mixture
from destruct.data.order import Shuffled
from destruct.data.store import TokenStore
from destruct.data.windows import PackedWindows, Pieces
from destruct.seeding import derive

SEED = 11
_WEIGHTS = 64
"""Weight vectors, after which they come again."""


def packed_batches(stores: dict[str, TokenStore], batch: int, window: int) -> Iterator[Tensor]:
    """Packed windows as the language modelling reads them, for ever: (B, T) int64; their positions are made too."""
    sources = [LanguageWindows(PackedWindows(store, window), derive(SEED, name)) for name, store in stores.items()]
    orders = language_orders(list(stores), sources, SEED)
    mixture, loader = Mixture(orders), LanguageLoader(sources, orders)
    try:
        for weights in _moving_weights(len(stores)):
            yield loader.read(mixture.draw(batch, weights)).tokens
    finally:
        loader.close()


def rollout_batches(stores: dict[str, TokenStore], batch: int, window: int) -> Iterator[PromptBatch]:
    """Pieces as the rollouts read them, half of a window for the prompt, for ever."""
    pieces = [Pieces(store, window // 2, window - window // 2, 0, own_prompts=False) for store in stores.values()]
    orders = [Shuffled(name, len(each), SEED, each.sizes) for name, each in zip(stores, pieces, strict=True)]
    mixture, loader = Mixture(orders), Loader(pieces, orders)
    try:
        for weights in _moving_weights(len(stores)):
            yield loader.read(mixture.draw(batch, weights), torch.device("cpu"))
    finally:
        loader.close()


def _moving_weights(sources: int) -> Iterator[NDArray[np.float64]]:
    drawn: Sequence[NDArray[np.float64]] = np.random.default_rng(SEED).dirichlet(np.ones(sources), _WEIGHTS)
    return itertools.cycle(drawn)
