"""A stream's documents, against the files read as local ones; any place in it is found again."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from destruct.config.data import SourceConfig
from destruct.data.documents import Document
from destruct.data.loading import Place
from destruct.data.stream import Start, StreamPass
from destruct.errors import DestructError
from destruct.seeding import derive
from tests.data.corpora import texts_of
from tests.data.streams import KIB, stream_of, write_files


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_files(folder)
    return folder


def texts(documents: list[Document], held_out: bool = False) -> list[str]:
    return [document.text for document in documents if document.held_out == held_out]


def test_a_stream_has_the_documents_of_the_files_in_their_order_and_holds_out_by_the_hash_alone(files):
    documents = list(stream_of(files, seed=4, fraction=0.2).documents())
    assert [document.text for document in documents] == texts_of(files) and len(documents) > 200
    for document in documents:
        assert document.held_out == (derive(4, "held out", document.text) < 0.2 * 2**64)


def test_from_every_place_the_very_next_row_follows(files):
    """Batches of 64 rows, row groups of 40, files of 150, 1 and 90: places of every kind, as JSON has them."""
    stream = stream_of(files).stream(Place())
    places, rows = [], []
    for row in stream.rows(["text"]):
        rows.append(row)
        places.append(json.dumps(asdict(stream.place)))
    assert [number for number, _ in rows] == list(range(241))
    assert set(rows[0][1]) == {"text"}
    for read in {*range(0, 241, 9), 39, 63, 64, 127, 148, 149, 150, 191, 239}:
        again = stream_of(files).stream(Start.of({"place": json.loads(places[read]), "taken": 0}).place)
        assert next(again.rows(["text"]), None) == rows[read + 1]
    assert list(stream_of(files).stream(Place(**json.loads(places[-1]))).rows(["text"])) == []


def shards(start: Start, *arguments: object, **keys: object) -> list[list[Document]]:
    """Each shard read by a pass of its own, which begins where the one before said."""
    found = []
    while not start.ended:
        one = StreamPass(stream_of(*arguments, **keys), start, ())
        found.append(list(one.shard()))
        start = Start.of(json.loads(json.dumps(one.next.as_json())))
    return found


def test_a_shard_ends_with_the_text_that_reaches_its_size_whoever_reads_it(files):
    wanted: list[list[str]] = [[]]
    for text in texts_of(files):
        if sum(len(earlier.encode()) for earlier in wanted[-1]) >= 3072:
            wanted.append([])
        wanted[-1].append(text)
    assert [[document.text for document in shard] for shard in shards(Start(), files, 3 * KIB)] == wanted
    in_one_go = StreamPass(stream_of(files, 3 * KIB), Start(), ())
    assert [[document.text for document in in_one_go.shard()] for _ in wanted] == wanted and in_one_go.next.ended


@pytest.mark.parametrize("most", [2, 30, 31, 100])
def test_a_cap_on_the_documents_counts_over_all_shards(files, most):
    capped = shards(Start(), files, max_documents=most)
    assert [document.text for shard in capped for document in shard] == texts_of(files)[:most]


def test_what_is_left_out_is_counted_with_the_shard_that_it_stands_in(files):
    whole = StreamPass(stream_of(files, min_characters=60), Start(), ())
    tallies = []
    while not whole.next.ended:
        given = list(whole.shard())
        tallies.append(whole.tally({}, 0))
        assert (tallies[-1].trained, tallies[-1].held_out) == (len(texts(given)), len(texts(given, held_out=True)))
    assert sum(tally.rows for tally in tallies) == 241
    assert sum(tally.empty for tally in tallies) == 9 + 5, "every 17th text from the sixth on"
    short = [text for text in texts_of(files) if len(text.strip()) < 60]
    assert sum(tally.short for tally in tallies) == len(short) > 10


def test_of_a_validation_split_as_much_as_a_shard_is_held_out_and_left_out_of_training(tmp_path):
    write_files(tmp_path)
    write_files(tmp_path, (60,), "validation")
    held = [text for text in texts_of(tmp_path / "validation-0.parquet") if text]
    # The same texts stand at the end of the training split too.
    (tmp_path / "train-3.parquet").write_bytes((tmp_path / "validation-0.parquet").read_bytes())
    documents = list(stream_of(tmp_path, 2 * KIB, validation_split="validation").documents())
    kept = texts(documents, held_out=True)
    assert kept == held[: len(kept)] and 2048 <= sum(map(len, kept)) < 2048 + len(kept[-1])
    train = texts(documents)
    assert not {*train} & {*kept}
    assert train[-5:] == held[-5:], "what was not held out stays"
    assert documents[: len(kept)] == [Document(text, True) for text in kept], "held-out documents come first"


def test_a_stream_of_empty_texts_is_told(tmp_path):
    write_files(tmp_path)
    with pytest.raises(DestructError, match="'mine': .*holds no non-empty document .*241 rows: .*14 empty, 227 short"):
        list(stream_of(tmp_path, min_characters=10_000).documents())


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"streaming": True, "path": "a.txt"}, "streaming is read by a hub source alone"),
        ({"shard_mib": 8, "hub": "me/mine"}, "shard_mib is read by a source with streaming: true alone"),
        ({"streaming": True, "hub": "me/mine", "deduplicate": True}, "leave deduplicate or streaming out"),
        ({"streaming": True, "hub": "me/mine", "split": "train[:9]"}, "is a slice, which streaming cannot take"),
        ({"streaming": True, "hub": "me/mine", "validation_split": "a[1:]"}, "is a slice, which streaming cannot"),
        ({"streaming": True, "hub": "me/mine", "shard_mib": 0}, "greater than 0"),
    ],
)
def test_keys_that_do_not_go_together_with_a_stream_are_refused(keys, said):
    with pytest.raises(ValueError, match=said):
        SourceConfig.model_validate(keys)
