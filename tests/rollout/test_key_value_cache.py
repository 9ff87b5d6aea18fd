"""The cache against transformers' own: what a layer sees, and what is left when rows have ended."""

import numpy as np
import pytest
import torch
from transformers import DynamicCache, LlamaConfig, MistralConfig
from transformers.cache_utils import DynamicLayer

from destruct.rollout.key_value_cache import ReservedLayer, reserve, without

SHAPE = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32}


def test_it_holds_what_transformers_own_holds_after_tokens_and_after_rows_have_ended():
    """Columns of several tokens and of one; a third of the rows ends after each."""
    g = torch.Generator().manual_seed(0)
    config, rng = LlamaConfig(**SHAPE), np.random.default_rng(0)
    ours, theirs, n = reserve(config, 9), DynamicCache(config=config), 12
    for t in (4, 1, 1, 3):
        for layer in range(2):
            new = [torch.randn(n, 2, t, 8, generator=g) for _ in range(2)]
            seen, known = ours.update(*new, layer), theirs.update(*new, layer)
            assert all(torch.equal(a, b) for a, b in zip(seen, known, strict=True))
        assert ours.get_seq_length() == theirs.get_seq_length()
        kept = without(torch.from_numpy(rng.random(n) < 1 / 3))
        ours.reorder_cache(kept)
        theirs.reorder_cache(kept)
        n = len(kept)
    assert 0 < n < 12
    for mine, other in zip(ours.layers, theirs.layers, strict=True):
        assert torch.equal(mine.keys, other.keys) and torch.equal(mine.values, other.values)


def test_its_memory_stays_where_it_is():
    """Neither a token nor an ended row copies what is there already."""
    layer = ReservedLayer(5)
    layer.update(*torch.randn(2, 3, 1, 2, 4))
    place = layer.keys.data_ptr()
    for _ in range(3):
        layer.update(*torch.randn(2, 3, 1, 1, 4))
    layer.reorder_cache(torch.tensor([0, 2]))
    assert layer.keys.data_ptr() == place and layer.keys.shape == (2, 1, 5, 4)


def test_a_column_too_many_is_refused_and_of_no_row_none_is_moved():
    layer = ReservedLayer(2)
    layer.reorder_cache(torch.tensor([1]))
    with pytest.raises(RuntimeError, match="size"):
        layer.update(*torch.randn(2, 1, 1, 3, 4))


def test_layers_that_keep_less_than_all_columns_stay_transformers_own():
    layers = reserve(MistralConfig(**SHAPE, sliding_window=4), 9).layers
    assert not any(isinstance(layer, ReservedLayer) or type(layer) is DynamicLayer for layer in layers)
    assert all(isinstance(layer, ReservedLayer) for layer in reserve(LlamaConfig(**SHAPE), 9).layers)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_without_keeps_each_living_row_once_and_moves_none_that_can_stay(share):
    rng = np.random.default_rng(1)
    for n in (1, 2, 7, 20):
        ended = torch.from_numpy(rng.random(n) < share)
        kept = without(ended).tolist()
        assert sorted(kept) == [row for row in range(n) if not ended[row]]
        assert all(row == place or row >= len(kept) for place, row in enumerate(kept))
