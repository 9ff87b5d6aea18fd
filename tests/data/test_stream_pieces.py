"""The pieces of a stream: those of its shards, in an order that survives a resume, and made before they are needed."""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from destruct.batch import PromptBatch
from destruct.data import stream_pieces
from destruct.data.loader import Loader
from destruct.data.mixture import Mixture, OutOfData
from destruct.data.order import SHARD, Order, Shuffled, Streamed
from destruct.data.stream_pieces import StreamPieces
from destruct.data.tokenizing import Tokenizer, train_tokenizer
from destruct.data.windows import Pieces
from destruct.errors import DestructError
from destruct.exits import Exit
from tests.data.stores import PAD, random_documents, store_of
from tests.data.streams import P, R, pieces_of, shards_of, stream_of, texts, unwatched, write_files

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.trained(train_tokenizer(texts(0, 400), 300))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_files(folder)
    return folder


@pytest.fixture(scope="module")
def beside(tmp_path_factory) -> Pieces:
    """A source on the disk, beside the stream."""
    folder = tmp_path_factory.mktemp("store")
    return Pieces(store_of(folder / "store", random_documents(1, 60, 30, bos=False)), P, R, PAD, own_prompts=True)


@contextmanager
def opened(cache: Path, files: Path, tokenizer: Tokenizer, **keys: Any) -> Iterator[StreamPieces]:
    pieces = pieces_of(cache, stream_of(files), tokenizer, **keys)
    try:
        yield pieces
    finally:
        pieces.close()


def test_the_pieces_are_those_of_each_shard(tmp_path, files, tokenizer):
    plain = shards_of(tmp_path / "plain", stream_of(files), tokenizer)
    with opened(tmp_path / "cache", files, tokenizer) as pieces:
        total = tokens = 0
        for number in range(8):
            shard = plain.open(number, lambda stores: Pieces(stores.train, P, R, 0, own_prompts=True), unwatched)
            assert shard is not None and pieces.count(number) == len(shard) > 50
            within = np.array([3, 0, len(shard) - 1])
            want, got = shard.read(within), pieces.read(number * SHARD + within)
            for field in ("tokens", "prompt_lengths", "continuation_lengths"):
                assert getattr(got, field).tolist() == getattr(want, field).tolist()
            assert pieces.sizes(number * SHARD + within).tolist() == shard.sizes(within).tolist()
            total, tokens = total + len(shard), tokens + shard.tokens
            assert (len(pieces), pieces.left_out) == (total, 0)
            assert pieces.mean_size == pytest.approx(tokens / total / (P + R))
        assert pieces.count(8) is None
        mixed = np.array([7 * SHARD, 5, 3 * SHARD + 1, 4])
        rows = pieces.read(mixed).tokens.tolist()
        assert rows == [pieces.read(mixed[n : n + 1]).tokens[0].tolist() for n in range(4)]
        pieces.release()


class Drawn:
    """A mixture of the stream and a source on the disk, and what reads it, as a run has them."""

    def __init__(self, stream: StreamPieces, beside: Pieces, most_epochs: int | None):
        orders: list[Order] = [
            Streamed("stream", stream, 5, most_epochs),
            Shuffled("store", len(beside), 5, beside.sizes),
        ]
        self.mixture, self.loader = Mixture(orders), Loader([stream, beside], orders)

    def batches(self, first: int, count: int) -> list[int]:
        return [digest(self.loader.read(self.mixture.draw(8, weights_of(n)), CPU)) for n in range(first, first + count)]

    def state(self) -> str:
        return json.dumps(self.mixture.state_dict())


def weights_of(number: int) -> np.ndarray:
    """The weights of batch `number`, which change now and then and abruptly."""
    rng = np.random.default_rng(number // 7)
    return np.eye(2)[number // 7 % 2] if number % 5 == 0 else rng.dirichlet(np.full(2, 0.5))


def digest(batch: PromptBatch) -> int:
    fields = (batch.windows, batch.prompt_lengths, batch.continuation_lengths, batch.source, batch.sample)
    return hash((batch.draw, *(field.numpy().tobytes() for field in fields)))


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [None, 1], ids=["for ever", "once"])
def test_five_hundred_batches_are_the_same_from_any_of_them_on_with_the_cache_and_without_it(
    tmp_path, files, tokenizer, beside, epochs
):
    """Some twelve hundred pieces in eight shards: about two epochs where it goes on, the end of it where not."""
    starts = [0, 37, 171, 288, 289, 420]
    states: dict[int, str] = {}
    digests: list[int] = []
    with opened(tmp_path, files, tokenizer) as stream:
        whole = Drawn(stream, beside, epochs)
        for number in range(500):
            if number in starts:
                states[number] = whole.state()
            digests += whole.batches(number, 1)
        whole.loader.close()
        drawn = whole.mixture.drawn[0]
        assert len({*digests}) == 500 and (drawn > 1.2 * len(stream) if epochs is None else drawn == len(stream))
        assert whole.mixture.exhausted == ([] if epochs is None else ["stream"])
        assert whole.mixture.epochs[0] == drawn / len(stream)
    for start in starts:
        if start % 2:
            shutil.rmtree(tmp_path)
        with opened(tmp_path, files, tokenizer) as stream:
            again = Drawn(stream, beside, epochs)
            again.mixture.load_state_dict(json.loads(states[start]))
            assert again.batches(start, min(60, 500 - start)) == digests[start : start + 60]
            again.loader.close()


def test_a_run_ends_with_a_stream_that_stops_it(tmp_path, files, tokenizer):
    with opened(tmp_path, files, tokenizer) as stream:
        mixture = Mixture([Streamed("stream", stream, 0, 1)], ["stream"])
        with pytest.raises(OutOfData):
            for _ in range(10_000):
                mixture.draw(8, [1.0])
        assert len(stream) - 8 < mixture.drawn[0] <= len(stream)


def test_the_next_shard_is_made_while_one_is_read(tmp_path, files, tokenizer):
    with opened(tmp_path, files, tokenizer) as stream:
        stream.sizes(np.arange(5))
        time.sleep(0.2)
        following = shards_of(tmp_path, stream_of(files), tokenizer).path(1)
        assert not following.exists(), "nothing has been read yet"
        stream.read(np.arange(5))
        until = time.monotonic() + 20
        while not following.exists() and time.monotonic() < until:
            time.sleep(0.01)
        assert following.exists()


def test_a_fault_of_the_next_shard_is_told_when_it_is_needed_and_not_before(tmp_path, tokenizer):
    """The second file goes away after the first one was begun, and is there again later."""
    write_files(tmp_path / "files")
    lost = tmp_path / "files" / "train-1.parquet"
    content = lost.read_bytes()
    with opened(tmp_path / "cache", tmp_path / "files", tokenizer) as stream:
        lost.unlink()
        for shard in range(4):
            stream.read(shard * SHARD + np.arange(stream.count(shard) or 0))
        with pytest.raises(DestructError, match="'mine': .*could not be read on behind row 128 of its stream") as error:
            stream.count(4)
        assert error.value.exit_code == Exit.ENVIRONMENT and "--resume auto" in error.value.remedy
        lost.write_bytes(content)
        assert stream.count(4), "asked again, it is tried again"
        whole = [stream.count(shard) for shard in range(9)]
    with opened(tmp_path / "other", tmp_path / "files", tokenizer) as stream:
        assert [stream.count(shard) for shard in range(9)] == whole


def test_a_shard_that_is_long_in_coming_is_said(tmp_path, files, tokenizer, monkeypatch):
    monkeypatch.setattr(stream_pieces, "_SAY_AFTER_S", 0.0)
    said: list[str] = []
    with opened(tmp_path, files, tokenizer, say=said.append) as stream:
        assert stream.count(0) and not said
        stream.count(2)
        assert said == ["source 'mine': waiting for shard 2 of its stream"]


def test_a_run_that_ends_does_not_wait_for_a_shard_that_nobody_needs(tmp_path, files, tokenizer):
    with opened(tmp_path, files, tokenizer) as stream:
        stream.read(np.arange(3))
    shards = shards_of(tmp_path, stream_of(files), tokenizer)
    assert not list(shards.folder.glob("*.tmp"))
    assert shards.open(3, lambda stores: stores.train.facts.documents, unwatched)
