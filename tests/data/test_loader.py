"""The loader: a batch is what its draw names, however it is prefetched, cut short, resumed or shared out."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from destruct.batch import PromptBatch
from destruct.data.loader import LanguageLoader, LanguageWindows, Loader, language_orders
from destruct.data.mixture import Mixture, OutOfData
from destruct.data.order import Shuffled
from destruct.data.windows import PackedWindows, Pieces
from destruct.errors import DestructError
from tests.data.stores import PAD, random_documents, store_of

CPU = torch.device("cpu")
P, R = 3, 5
EPOCHS = (None, 3, None)
"""The second source ends."""


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Of 32 windows, so that batches lie across them and there are many."""
    monkeypatch.setattr("destruct.data.loader.CHUNK_TOKENS", 32 * (P + R))


class Drawn:
    """A mixture of three sources and what reads it, as a run has them."""

    def __init__(self, pieces: list[Pieces], seed: int = 0):
        orders = [
            Shuffled(f"s{number}", len(each), seed, each.sizes, epochs)
            for number, (each, epochs) in enumerate(zip(pieces, EPOCHS, strict=True))
        ]
        self.mixture, self.loader = Mixture(orders), Loader(pieces, orders)

    def batch(self, weights: np.ndarray, size: int = 8) -> PromptBatch:
        return self.loader.read(self.mixture.draw(size, weights), CPU)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory) -> list[Pieces]:
    folder = tmp_path_factory.mktemp("stores")
    stores = [
        store_of(folder / str(number), random_documents(number, count, longest, bos=False))
        for number, (count, longest) in enumerate([(40, 30), (90, 6), (7, 200)])
    ]
    return [Pieces(store, P, R, PAD, own_prompts=True) for store in stores]


def weights_of(number: int) -> np.ndarray:
    """The weights of batch `number`, which change now and then and abruptly."""
    rng = np.random.default_rng(number // 7)
    return np.eye(3)[number // 7 % 3] if number % 5 == 0 else rng.dirichlet(np.full(3, 0.5))


def digest(batch: PromptBatch) -> int:
    fields = (batch.windows, batch.prompt_lengths, batch.continuation_lengths, batch.source, batch.sample)
    return hash((batch.draw, *(field.numpy().tobytes() for field in fields)))


def test_a_batch_holds_the_pieces_that_its_draw_names(pieces):
    run = Drawn(pieces)
    for number in range(60):
        draw = run.mixture.draw(8, weights_of(number))
        got = run.loader.read(draw, CPU)
        assert got.draw == number and got.prompt_tokens == P
        assert got.sample.tolist() == draw.sample.tolist() and got.source.tolist() == draw.source.tolist()
        for row, (source, index) in enumerate(zip(draw.source, draw.index, strict=True)):
            want = pieces[source].read(np.array([index]))
            assert got.windows[row].tolist() == want.tokens[0].tolist()
            assert got.prompt_lengths[row] == want.prompt_lengths[0]
            assert got.continuation_lengths[row] == want.continuation_lengths[0]


@pytest.mark.slow
def test_ten_thousand_batches_are_the_same_from_any_of_them_on(pieces):
    """In the middle of epochs, with chunks being read ahead, across changes of the weights and the end of a source."""
    whole, states = Drawn(pieces), {}
    rng = np.random.default_rng(3)
    starts = sorted(rng.integers(0, 10_000, 8).tolist())
    digests = []
    ended = None
    for number in range(10_000):
        if number in starts:
            states[number] = json.dumps(whole.mixture.state_dict())
        digests.append(digest(whole.batch(weights_of(number))))
        if ended is None and whole.mixture.exhausted:
            ended = number
    assert ended is not None and ended > 0 and whole.mixture.exhausted == ["s1"]
    states |= {number: None for number in (ended - 1, ended, ended + 1)}
    again = Drawn(pieces)
    for number in range(ended + 2):  # just before, at and just after the batch with that source's last piece
        if number in states and states[number] is None:
            states[number] = json.dumps(again.mixture.state_dict())
        again.batch(weights_of(number))
    for start, state in states.items():
        resumed = Drawn(pieces)
        resumed.mixture.load_state_dict(json.loads(state))
        stop = 10_000 if start == starts[0] else min(10_000, start + 100)
        assert [digest(resumed.batch(weights_of(number))) for number in range(start, stop)] == digests[start:stop]
        resumed.loader.close()
    assert max(map(len, filter(None, states.values()))) < 1000, "a few hundred bytes are the whole state"


def test_a_new_weight_acts_on_the_next_batch_while_the_chunks_of_other_sources_wait(pieces):
    run = Drawn(pieces)
    read: list[tuple[int, int]] = []
    for number, source in enumerate(run.loader._ahead._sources):
        run.loader._ahead._sources[number] = Overheard(source, number, read)
    for source in (0, 2, 0, 2):
        assert set(run.batch(np.eye(3)[source], 20).source.tolist()) == {source}
    for chunks in run.loader._ahead._submitted:
        for chunk in chunks.values():
            chunk.result()
    # Of each two chunks for 40 windows, and the next one, each once, however the weights jumped.
    assert len(read) == len(set(read)) == 6 and {source for source, _ in read} == {0, 2}


class Overheard:
    """Pieces that tell what is read of them."""

    def __init__(self, pieces: Pieces, number: int, read: list[tuple[int, int]]):
        self.pieces, self.number, self.heard = pieces, number, read

    def read(self, index: np.ndarray):
        self.heard.append((self.number, hash(index.tobytes())))
        return self.pieces.read(index)

    def release(self) -> None:
        self.pieces.release()


def test_what_was_drawn_is_forgotten(pieces):
    run = Drawn(pieces)
    for _ in range(60):
        run.batch(np.full(3, 1 / 3), 20)
        assert max(len(chunks) for chunks in run.loader._ahead._submitted) <= 2
    assert min(run.mixture.drawn) > 200, "six chunks of each"


def test_a_disk_that_fails_is_told_in_two_lines(tmp_path):
    store = store_of(tmp_path / "s", random_documents(0, 50, 40, False))
    pieces = Pieces(store, P, R, PAD, own_prompts=True)
    order = Shuffled("mine", len(pieces), 0, pieces.sizes)
    mixture, loader = Mixture([order]), Loader([pieces], [order])
    with (store.folder / "tokens.bin").open("r+b") as file:
        file.truncate(10)
    with pytest.raises(DestructError, match="'mine': its token cache cannot be read any more: .*cut short"):
        loader.read(mixture.draw(40, [1.0]), CPU)


def test_batches_of_any_size_make_one_order(pieces):
    def stream(size: int) -> list[list[int]]:
        run = Drawn(pieces)
        batches = [run.batch(np.array([0.5, 0.2, 0.3]), size) for _ in range(600 // size)]
        return [row for batch in batches for row in batch.windows.tolist()]

    assert stream(4) == stream(60) == stream(600)


def test_the_seed_decides_the_order(pieces):
    one, other = (Drawn(pieces, seed).batch(np.full(3, 1 / 3), 30) for seed in (0, 1))
    assert one.windows.tolist() != other.windows.tolist()


def test_a_draw_that_cannot_be_filled_reads_nothing(tmp_path):
    pieces = Pieces(store_of(tmp_path / "s", random_documents(0, 5, 4, False)), P, R, PAD, own_prompts=True)
    order = Shuffled("only", len(pieces), 0, pieces.sizes, max_epochs=1)
    mixture, loader = Mixture([order]), Loader([pieces], [order])
    got = loader.read(mixture.draw(len(pieces), [1.0]), CPU)
    assert sorted(got.windows.tolist()) == sorted(pieces.read(np.arange(len(pieces))).tokens.tolist())
    with pytest.raises(OutOfData):
        mixture.draw(1, [1.0])


def test_language_windows_are_a_permutation_of_the_packed_ones_and_the_first_are_a_sample(tmp_path):
    packed = PackedWindows(store_of(tmp_path / "s", random_documents(0, 300, 9, True)), 6)
    windows = LanguageWindows(packed, key=5)
    got, (tokens, positions) = windows.select(torch.arange(len(packed))), packed.read(np.arange(len(packed)))
    place = {(row, index): index for index, row in enumerate(map(tuple, tokens.tolist()))}
    assert sorted(map(tuple, got.tokens.tolist())) == sorted(row for row, _ in place)
    assert got.tokens.tolist() != tokens.tolist() and len(windows) == len(packed)
    some = windows.select(np.array([3, 1]))
    assert some.tokens.tolist() == got.tokens[[3, 1]].tolist()
    assert some.positions.tolist() == got.positions[[3, 1]].tolist()
    assert LanguageWindows(packed, key=6).select(np.arange(9)).tokens.tolist() != got.tokens[:9].tolist()
    assert sorted(map(tuple, got.positions.tolist())) == sorted(map(tuple, positions.tolist()))


def test_a_batch_of_language_windows_is_in_the_order_of_its_draw(tmp_path):
    sources = [
        LanguageWindows(PackedWindows(store_of(Path(tmp_path, str(n)), random_documents(n, 60, 20, False)), 6), n)
        for n in range(3)
    ]
    orders = language_orders(["a", "b", "c"], sources, seed=4)
    mixture, loader = Mixture(orders), LanguageLoader(sources, orders)
    for _ in range(5):
        draw = mixture.draw(16, [0.5, 0.4, 0.1])
        got = loader.read(draw)
        for row, (source, index) in enumerate(zip(draw.source, draw.index, strict=True)):
            want = sources[source].select(np.array([index]))
            assert got.tokens[row].tolist() == want.tokens[0].tolist()
            assert got.positions[row].tolist() == want.positions[0].tolist()
