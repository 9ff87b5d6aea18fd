"""The keys and values of what was read and sampled so far, in memory that is taken once for the whole response."""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer


class ReservedLayer(DynamicLayer):
    """A layer's keys and values (n, G, columns so far, D), views of memory with room for all columns.

    transformers' own layer copies all of them for every token.

    Args:
        columns: of prompt and response together.
    """

    def __init__(self, columns: int):
        super().__init__()
        self._columns, self._filled = columns, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self._room = [x.new_empty(*x.shape[:2], self._columns, x.shape[3]) for x in (key_states, value_states)]

    def update(self, key_states: Tensor, value_states: Tensor, *others: Any, **named: Any) -> tuple[Tensor, Tensor]:
        """Put the columns of (n, G, t, D) behind those that are here; all columns."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        begin, self._filled = self._filled, self._filled + key_states.shape[2]
        for room, new in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, begin : self._filled] = new
        self._show()
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep rows (m,) int64, m <= n, in this order; of the first m those that stay are not copied.

        Args:
            beam_idx: i itself in place i, or a row >= m.
        """
        if not self.is_initialized:
            return
        moved = (beam_idx != torch.arange(len(beam_idx), device=beam_idx.device)).nonzero().squeeze(1)
        for room in self._room:
            room[moved, :, : self._filled] = room[beam_idx[moved], :, : self._filled]
        self._room = [room[: len(beam_idx)] for room in self._room]
        self._show()

    def _show(self) -> None:
        self.keys, self.values = (room[:, :, : self._filled] for room in self._room)


def reserve(config: PreTrainedConfig, columns: int) -> DynamicCache:
    """A cache for a model of transformers; what a layer keeps beside plain keys and values is up to transformers."""
    cache = DynamicCache(config=config)
    cache.layers = [ReservedLayer(columns) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def without(ended: Tensor) -> Tensor:
    """The rows that have not ended, as `ReservedLayer.reorder_cache` takes them: ended (n,) bool -> (m,) int64."""
    alive = (~ended).nonzero().squeeze(1)
    rows = torch.arange(len(alive), device=ended.device)
    gone = ended[: len(alive)]
    rows[gone] = alive[alive >= len(alive)]
    return rows
