"""Packing documents into windows."""

import numpy as np
import pytest

from destruct.config.data import DataConfig
from destruct.data.sources import load_sources
from destruct.data.tokenizing import Tokenizer, train_tokenizer
from destruct.data.windows import Windows, pack, pack_sources
from destruct.errors import DestructError

EOS = 0


def arrays(*documents: list[int]) -> list[np.ndarray]:
    return [np.array(document, dtype=np.int32) for document in documents]


def test_packing_three_documents_worked_by_hand():
    got = pack("s", arrays([5, 6, 7], [], [8, 9, 5, 6]), 4, EOS)
    assert got.tokens.tolist() == [[5, 6, 7, EOS], [EOS, 8, 9, 5]] and got.tokens.dtype == np.int32
    assert got.dropped == 2  # 6 and the last EOS


def test_every_token_and_every_end_is_kept_but_the_dropped_rest():
    rng = np.random.default_rng(0)
    documents = [rng.integers(1, 99, rng.integers(0, 40)).astype(np.int32) for _ in range(50)]
    stream = [token for document in documents for token in [*document.tolist(), EOS]]
    for length in (1, 2, 7, 64, len(stream)):
        got = pack("s", documents, length, EOS)
        assert got.tokens.ravel().tolist() == stream[: len(stream) - got.dropped]
        assert got.dropped == len(stream) % length


def test_less_than_a_window_is_an_error_with_both_figures():
    assert pack("s", arrays([1, 2, 3]), 4, EOS).tokens.shape == (1, 4)
    with pytest.raises(DestructError, match="source 'books' has 4 tokens; one window takes 5"):
        pack("'books'", arrays([1, 2, 3]), 5, EOS)


def test_windows_refuse_other_shapes_and_types():
    wrong: list[np.ndarray] = [np.zeros((0, 4), np.int32), np.zeros(4, np.int32), np.zeros((2, 4), np.int64)]
    for tokens in wrong:
        with pytest.raises(ValueError, match="Windows.tokens"):
            Windows(tokens, 0)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.trained(train_tokenizer(["a small text"], 258))


def test_sources_are_built_in_order_with_their_priors_and_flags(tokenizer):
    config = DataConfig.model_validate(
        {
            "sources": {
                "sums": {"embedded": "arithmetic", "prior": 3},
                "chain": {"embedded": "markov"},
                "hiss": {"embedded": "noise", "learnable": False, "max_documents": 9},
            },
            "embedded_bytes": 20_000,
        }
    )
    built = pack_sources(load_sources(config, 0), config, 32, tokenizer)
    assert [source.name for source in built] == ["sums", "chain", "hiss"]
    assert list(config.prior.values()) == pytest.approx([0.6, 0.2, 0.2])
    assert [source.learnable for source in built] == [True, True, False]
    for source in built:
        assert source.train.tokens.shape[1] == source.validation.tokens.shape[1] == 32
    assert built[2].train.tokens.size < built[1].train.tokens.size
    # 258 entries merge nothing: each byte is a token, and sums are what the windows spell.
    assert set(tokenizer.decode(built[0].train.tokens[0])) <= set("0123456789+-*=:, \n")


def test_a_source_too_short_for_a_window_is_named_with_its_split(tokenizer):
    config = DataConfig.model_validate({"sources": {"chain": {"embedded": "markov"}}, "embedded_bytes": 10_000})
    with pytest.raises(DestructError, match=r"source 'chain' \(held out\) has \d+ tokens; one window takes 9000"):
        pack_sources(load_sources(config, 0), config, 9000, tokenizer)
