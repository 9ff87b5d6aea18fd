"""Sources: what is read, what is held out, and what each fault says."""

import importlib
import json
import socket
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from destruct.config.data import DataConfig
from destruct.data.formatters import Chat
from destruct.errors import DestructError
from tests.data.corpora import TEXTS, fault, load, load_sources, write


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".txt"])
def test_local_files_are_read_in_order_without_empty_rows_and_split(tmp_path, suffix):
    texts = [text.replace("\n", " ") for text in TEXTS]
    rows = [*texts[:20], "", " \t ", *texts[20:]]
    got = load(write(tmp_path / f"notes [1]{suffix}", rows), fraction=0.3)
    assert sorted(got.train + got.validation) == sorted(texts)
    for side in (got.train, got.validation):
        assert side == sorted(side, key=texts.index)
    assert 4 <= len(got.validation) <= 20  # 12 are expected, with a standard deviation of 2.9


def test_rows_of_null_are_dropped_and_line_breaks_are_kept(tmp_path):
    got = load(write(tmp_path / "a.parquet", [TEXTS[0], None, TEXTS[1]]))
    assert sorted(got.train + got.validation) == TEXTS[:2]


def test_the_split_is_a_function_of_seed_and_text_alone(tmp_path):
    one = load(write(tmp_path / "a.jsonl", TEXTS), fraction=0.5)
    other = load(write(tmp_path / "b.parquet", TEXTS[::-1] + ["one more"]), fraction=0.5)
    assert set(one.validation) == set(other.validation) - {"one more"}
    assert set(load(tmp_path / "a.jsonl", fraction=0.5, seed=1).validation) != set(one.validation)


def test_no_held_out_text_is_trained_on_even_where_rows_repeat(tmp_path):
    for seed in range(5):
        got = load(write(tmp_path / f"{seed}.jsonl", TEXTS[:6] * 5), seed=seed)
        assert got.train and got.validation and not set(got.train) & set(got.validation)
        assert len(got.train) + len(got.validation) == 30


def test_two_sources_of_one_file_hold_out_the_same_texts(tmp_path):
    file = str(write(tmp_path / "a.jsonl", TEXTS))
    config = DataConfig.model_validate({"sources": {"one": {"path": file}, "two": {"path": file}}})
    one, two = load_sources(config, 3)
    assert (one.name, two.name) == ("one", "two") and one.validation == two.validation


@pytest.mark.parametrize("fraction", [0.0001, 0.9999])
def test_both_sides_get_a_document_however_small_the_share(tmp_path, fraction):
    for seed in range(8):
        got = load(write(tmp_path / "a.jsonl", TEXTS[:2]), seed=seed, fraction=fraction)
        assert len(got.train) == len(got.validation) == 1


def test_one_document_cannot_be_held_out_and_trained_on(tmp_path):
    error = fault(write(tmp_path / "a.jsonl", TEXTS[:1] * 3))
    assert "1 different document" in error.problem and "validation" in error.remedy


def test_a_folder_brings_its_own_validation_file(tmp_path):
    write(tmp_path / "train.jsonl", TEXTS[:30])
    alone = load(tmp_path)
    assert sorted(alone.train + alone.validation) == sorted(TEXTS[:30])
    write(tmp_path / "validation.parquet", TEXTS[30:])
    got = load(tmp_path)
    assert got.train == TEXTS[:30] and got.validation == TEXTS[30:]
    assert load(tmp_path, max_documents=4).validation == TEXTS[30:34]


def test_another_column_and_a_cap_on_the_documents(tmp_path):
    got = load(write(tmp_path / "a.parquet", ["", *TEXTS], column="body"), column="body", max_documents=7)
    assert sorted(got.train + got.validation) == sorted(TEXTS[:7])


def test_embedded_sources_differ_by_name_and_by_seed():
    two = {"a": {"embedded": "markov"}, "b": {"embedded": "markov", "max_documents": 5}}
    config = DataConfig.model_validate({"sources": two, "embedded_bytes": 10_000})
    a, b = load_sources(config, 0)
    assert not set(a.train + a.validation) & set(b.train + b.validation)
    assert len(b.train) + len(b.validation) == 5
    assert load_sources(config, 0) == [a, b]
    assert set(load_sources(config, 1)[0].train).isdisjoint(a.train)


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".txt"])
@pytest.mark.parametrize("rows", [[], ["", " ", "\t"]])
def test_a_source_without_text_is_refused(tmp_path, suffix, rows):
    if suffix == ".parquet":
        pq.write_table(pa.table({"text": pa.array(rows, pa.string())}), tmp_path / "a.parquet")
    else:
        write(tmp_path / f"a{suffix}", rows)
    error = fault(tmp_path / f"a{suffix}")
    assert f"a{suffix} holds no non-empty document" in error.problem


def test_nulls_alone_are_no_text(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": null}\n')
    assert "no non-empty document" in fault(tmp_path / "a.jsonl").problem


def test_a_broken_validation_file_is_found_too(tmp_path):
    write(tmp_path / "train.jsonl", TEXTS)
    (tmp_path / "validation.parquet").write_bytes(b"")
    assert "validation.parquet" in fault(tmp_path).problem


def test_missing_and_unknown_paths(tmp_path):
    assert "does not exist" in fault(tmp_path / "nowhere.jsonl").problem
    (tmp_path / "a.csv").write_text("text\nx\n")
    error = fault(tmp_path / "a.csv")
    assert "'.csv'" in error.problem and ".parquet, .jsonl, .jsonl.gz, .txt" in error.problem
    error = fault(tmp_path)
    assert "has no train file; it holds a.csv" in error.problem
    write(tmp_path / "train.txt", TEXTS), write(tmp_path / "train.jsonl", TEXTS)
    assert "holds train.jsonl and train.txt" in fault(tmp_path).problem


def test_local_files_are_read_without_the_network(tmp_path, monkeypatch):
    asked = []

    def no_network(*address, **_):
        asked.append(address)
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    for suffix in (".parquet", ".jsonl", ".txt"):
        load(write(tmp_path / f"a{suffix}", TEXTS))
    assert not asked


def test_a_chat_is_marked_up_and_nothing_else_is(tmp_path):
    rows = [{"messages": [{"role": "user", "content": text}]} for text in TEXTS]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = {"chat": {"path": str(tmp_path / "a.jsonl"), "format": "chat"}, "noise": {"embedded": "noise"}}
    config = DataConfig.model_validate({"sources": sources, "embedded_bytes": 10_000})
    chat = Chat("mine", lambda messages, answer: f"<|user|>{messages[0]['content']}{'<|assistant|>' * answer}")
    got, noise = load_sources(config, 0, chat)
    assert got.marked_up and not noise.marked_up and not load(write(tmp_path / "b.jsonl", TEXTS)).marked_up
    assert sorted(got.train + got.validation) == sorted(f"<|user|>{text}<|assistant|>" for text in TEXTS)
    with pytest.raises(DestructError, match="source 'chat': format: chat needs a chat template"):
        load_sources(config, 0)


FORMATS_MODULE = """\
calls = []

def counted(row):
    calls.append(sorted(row))
    return None if row["id"] % 2 else f"{row['title']}: {row['text']}"

def strict(row):
    assert row["id"] < 5, "too many"
    return row["text"]
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "row_formats.py").write_text(FORMATS_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("row_formats", None)


def test_a_cap_ends_the_reading_and_rows_that_a_function_leaves_out_do_not_count(tmp_path, module):
    table = pa.table({"id": range(1000), "title": ["t"] * 1000, "text": [f"text {n}" for n in range(1000)]})
    pq.write_table(table, tmp_path / "a.parquet")
    got = load(tmp_path / "a.parquet", format="row_formats:counted", max_documents=3)
    assert sorted(got.train + got.validation) == ["t: text 0", "t: text 2", "t: text 4"]
    assert importlib.import_module("row_formats").calls == [["id", "text", "title"]] * 5


def test_a_row_that_cannot_be_made_a_text_is_named_by_its_number_and_its_file(tmp_path, module):
    file = write(tmp_path / "a.jsonl", TEXTS)
    error = fault(file, format="row_formats:strict")
    assert error.remedy.endswith("or set data.sources.mine.on_bad_row: skip")
    got = load(file, format="row_formats:strict", on_bad_row="skip")
    assert sorted(got.train + got.validation) == TEXTS[:5]
    assert error.problem.startswith(f"source 'mine', line 6 of {file}: format 'row_formats:strict' raised Assertion")
