"""Windows on stored documents: packed from the stream, and pieces of one document each."""

import resource

import numpy as np
import pytest

from destruct.data.windows import PackedWindows, Pieces
from tests.data.stores import BOS, EOS, PAD, random_documents, store_of


def everything(windows: PackedWindows | Pieces) -> np.ndarray:
    return np.arange(len(windows))


def test_packing_three_documents_worked_by_hand(tmp_path):
    store = store_of(tmp_path / "s", [[15, 16, 17, EOS], [18, EOS], [19, 20, 21, 22, EOS]])
    packed = PackedWindows(store, 4)
    tokens, positions = packed.read(everything(packed))
    assert tokens.tolist() == [[15, 16, 17, EOS], [EOS, 18, EOS, 19], [19, 20, 21, 22]]
    assert positions.tolist() == [[0, 1, 2, 3], [0, 0, 1, 0], [0, 1, 2, 3]]
    assert len(packed) == 3  # the last EOS is left over


def test_a_window_that_begins_inside_a_document_begins_with_the_bos(tmp_path):
    store = store_of(tmp_path / "s", [[BOS, 15, 16, 17, EOS], [BOS, 18, 19, EOS]])
    tokens, positions = PackedWindows(store, 5).read(np.arange(2))
    assert tokens.tolist() == [[BOS, 15, 16, 17, EOS], [BOS, BOS, 18, 19, EOS]]
    assert positions.tolist() == [[0, 1, 2, 3, 4], [0, 0, 1, 2, 3]]


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("length", [2, 3, 16, 61, 500])
def test_packed_windows_predict_every_token_that_begins_no_document_once(tmp_path, bos, length):
    documents = random_documents(1, 120, 40, bos)
    packed = PackedWindows(store_of(tmp_path / "s", documents), length)
    tokens, positions = packed.read(everything(packed))
    stream = [token for document in documents for token in document]
    inside = [place > 0 for document in documents for place in range(len(document))]
    covered = len(packed) * (length - 1) + 1
    assert 0 <= len(stream) - covered < length - 1
    # Behind the first, which is context alone, the windows' tokens are the stream's, and so is what is predicted.
    assert tokens[:, 1:].ravel().tolist() == stream[1:covered]
    assert (positions[:, 1:] > 0).ravel().tolist() == inside[1:covered]
    follows = positions[:, 1:] == positions[:, :-1] + 1
    assert (positions[:, 0] == 0).all() and (follows | (positions[:, 1:] == 0)).all()


def test_packed_windows_are_read_in_any_order_and_number(tmp_path):
    packed = PackedWindows(store_of(tmp_path / "s", random_documents(2, 50, 30, True)), 8)
    tokens, positions = packed.read(everything(packed))
    some = np.random.default_rng(0).permutation(len(packed))[:20]
    got = packed.read(some)
    np.testing.assert_array_equal(got[0], tokens[some])
    np.testing.assert_array_equal(got[1], positions[some])
    assert [part.shape for part in packed.read(np.arange(0))] == [(0, 8), (0, 8)]


def test_fewer_tokens_than_a_window_make_none(tmp_path):
    store = store_of(tmp_path / "s", [[5, 6, EOS]])
    assert len(PackedWindows(store, 3)) == 1 and len(PackedWindows(store, 4)) == 0
    assert len(PackedWindows(store_of(tmp_path / "empty", []), 3)) == 0
    with pytest.raises(ValueError, match="length is 1"):
        PackedWindows(store, 1)


def test_pieces_of_three_documents_worked_by_hand(tmp_path):
    """P = R = 3.  Seven tokens make pieces of 3 and 4; a piece of n < 6 has a prompt of max(1, n * 3 // 6)."""
    store = store_of(tmp_path / "s", [[11, 12, 13, 14, 15, 16, EOS], [21, EOS], [31, 32, 33, 34, 35, EOS]])
    pieces = Pieces(store, 3, 3, PAD, own_prompts=True)
    got = pieces.read(everything(pieces))
    assert got.tokens.tolist() == [
        [PAD, PAD, 11, 12, 13, PAD],
        [PAD, 14, 15, 16, EOS, PAD],
        [PAD, PAD, 21, EOS, PAD, PAD],
        [31, 32, 33, 34, 35, EOS],
    ]
    assert got.prompt_lengths.tolist() == [1, 2, 1, 3] and got.continuation_lengths.tolist() == [2, 2, 1, 3]
    assert (pieces.sizes(everything(pieces)) * 6).tolist() == pytest.approx([3, 4, 2, 6])


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize(("prompt", "response"), [(6, 10), (1, 15), (15, 1), (40, 24)])
def test_pieces_hold_every_token_once_in_order_and_begin_with_their_document_or_the_bos(
    tmp_path, bos, prompt, response
):
    documents = random_documents(3, 150, 90, bos)
    pieces = Pieces(store_of(tmp_path / "s", documents), prompt, response, PAD, own_prompts=True)
    got = pieces.read(everything(pieces))
    held = []
    for row, p, c in zip(got.tokens.tolist(), got.prompt_lengths, got.continuation_lengths, strict=True):
        real = row[prompt - p : prompt + c]
        assert 1 <= p <= prompt and 0 <= c <= response and (c > 0 or len(real) == 1)
        assert set(row[: prompt - p] + row[prompt + c :]) <= {PAD}
        if bos:
            assert real.pop(0) == BOS
        held += real
    assert held == [token for document in documents for token in document[int(bos) :]]
    np.testing.assert_allclose(pieces.sizes(everything(pieces)) * (prompt + response),
                               got.prompt_lengths + got.continuation_lengths)  # fmt: skip
    assert pieces.left_out == 0 and pieces.tokens == (got.prompt_lengths + got.continuation_lengths).sum()
    assert pieces.mean_size == pytest.approx(pieces.sizes(everything(pieces)).mean())


@pytest.mark.parametrize("bos", [0, 1])
def test_all_pieces_but_the_last_two_of_a_document_are_whole_and_none_is_shorter_than_the_half(tmp_path, bos):
    """C = T - bos tokens besides the bos; what a reader of the rule would cut, piece by piece."""
    documents = [[*[BOS] * bos, *range(10, 10 + length - 1), EOS] for length in range(2, 200)]
    pieces = Pieces(store_of(tmp_path / "s", documents), 8, 8, PAD, own_prompts=True)
    got = pieces.read(everything(pieces))
    sizes = iter((got.prompt_lengths + got.continuation_lengths - bos).tolist())
    most = 16 - bos
    for length in range(2, 200):
        left, wanted = length, []
        while left >= 2 * most or left == most:
            wanted.append(most)
            left -= most
        if left > most and 2 * (left - most) < most:
            wanted += [left // 2, left - left // 2]
        elif left > most:
            wanted += [most, left - most]
        elif left:
            wanted.append(left)
        assert [next(sizes) for _ in range(-(-length // most))] == wanted, length


def test_a_document_with_a_prompt_of_its_own_is_cut_there_and_left_out_where_that_is_too_long(tmp_path):
    documents = [[11, 12, 13, 14, EOS], [21, 22, 23], [31, 32, 33, 34, 35, EOS], [41, *range(50, 60), EOS]]
    store = store_of(tmp_path / "s", documents, [2, 3, 4, 1])
    pieces = Pieces(store, 3, 4, PAD, own_prompts=True)
    got = pieces.read(everything(pieces))
    assert got.tokens.tolist() == [
        [PAD, 11, 12, 13, 14, EOS, PAD],
        [21, 22, 23, PAD, PAD, PAD, PAD],  # nothing follows it
        [PAD, PAD, 41, 50, 51, 52, 53],  # what follows is cut
    ]
    assert got.prompt_lengths.tolist() == [2, 3, 1] and got.continuation_lengths.tolist() == [3, 0, 4]
    assert pieces.left_out == 1 and pieces.tokens == 5 + 3 + 5
    anywhere = Pieces(store, 3, 4, PAD, own_prompts=False)
    assert anywhere.left_out == 0 and len(anywhere) == 5


def test_the_index_of_the_pieces_is_made_once_and_belongs_to_their_lengths(tmp_path):
    store = store_of(tmp_path / "s", random_documents(4, 40, 30, False))
    first = Pieces(store, 4, 4, PAD, own_prompts=True)
    files = {file.name: file.stat().st_mtime_ns for file in store.folder.glob("pieces-*")}
    again = Pieces(store, 4, 4, PAD, own_prompts=True)
    assert {file.name: file.stat().st_mtime_ns for file in store.folder.glob("pieces-*")} == files and len(files) == 1
    np.testing.assert_array_equal(again.read(everything(again)).tokens, first.read(everything(first)).tokens)
    assert len(Pieces(store, 2, 4, PAD, own_prompts=True)) > len(first)
    index = store.folder / next(iter(files))
    index.unlink()  # what is mapped is not cut
    index.write_bytes(b"cut short")
    assert len(Pieces(store, 4, 4, PAD, own_prompts=True)) == len(first)


def test_a_store_without_documents_has_no_pieces(tmp_path):
    pieces = Pieces(store_of(tmp_path / "s", []), 4, 4, PAD, own_prompts=True)
    assert len(pieces) == 0 and pieces.left_out == 0


def test_an_index_that_cannot_be_written_is_kept_in_memory_and_none_is_left_half_written(tmp_path):
    store = store_of(tmp_path / "s", random_documents(5, 90, 30, False))
    shown = Pieces(store, 4, 4, PAD, own_prompts=True)
    (store.folder / f"{shown.kind}.bin").unlink()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
    try:
        kept = Pieces(store, 4, 4, PAD, own_prompts=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(store.folder.glob("pieces-*"))
    np.testing.assert_array_equal(kept.read(everything(kept)).tokens, shown.read(everything(shown)).tokens)
    kept.release()
