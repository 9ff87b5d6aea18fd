"""Bad rows: each is told by its file and line, or skipped and counted."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from destruct.errors import DestructError
from tests.data.corpora import TEXTS, fault, opened, texts_of, write

SKIP = {"on_bad_row": "skip"}


BAD_LINES = {
    "half a line": ('{"text": "cut o', "not JSON: Unterminated string starting at at character 10 of 15"),
    "words": ("plain words", "not JSON: Expecting value at character 1 of 11"),
    "an array": ('["text"]', "a JSON value of type list, not an object"),
    "a number": ("12", "a JSON value of type int, not an object"),
    "brackets": ("[" * 200_000, "not readable as JSON: maximum recursion depth exceeded"),
    "a long number": ('{"text": ' + "9" * 5000 + "}", "not readable as JSON: Exceeds the limit (4300 digits)"),
    "a surrogate": ('{"text": "ab\\ud800c"}', "its text has the lone surrogate U+D800 at character 3"),
    "bytes": ('{"text": "a\udcff"}', "not UTF-8: byte 0xff at byte 12"),
}


@pytest.mark.parametrize("bad", BAD_LINES)
def test_a_broken_line_is_told_by_its_number_or_skipped_and_counted(tmp_path, bad):
    line, problem = BAD_LINES[bad]
    good = [json.dumps({"text": text}) for text in TEXTS]
    content = "\n".join([*good[:2], "", line, *good[2:]])
    (tmp_path / "a.jsonl").write_bytes(content.encode("utf-8", "surrogateescape"))
    error = fault(tmp_path / "a.jsonl")
    assert error.problem.startswith(f"source 'mine', line 4 of {tmp_path / 'a.jsonl'}: {problem}")
    assert error.remedy.endswith(", or set data.sources.mine.on_bad_row: skip")
    source = opened(tmp_path / "a.jsonl", **SKIP)
    assert sorted(document.text for document in source.documents()) == sorted(TEXTS)
    assert source.tally.bad == 1 and source.tally.rows == 41 and "left out: 1 bad" in source.tally.line


def test_bytes_that_are_not_utf8_are_a_bad_row_in_text_and_in_parquet_too(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\nt\xfcr\nthree\n")
    (tmp_path / "utf16.txt").write_bytes("one\ntwo\n".encode("utf-16"))
    raw = pa.array([b"one", b"t\xfcr", b"three"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    pq.write_table(pa.table({"text": text}), tmp_path / "a.parquet")
    assert (
        "line 2 of" in fault(tmp_path / "a.txt").problem and "byte 0xfc at byte 2" in fault(tmp_path / "a.txt").problem
    )
    assert "line 1 of" in fault(tmp_path / "utf16.txt").problem
    assert "row 1 of" in fault(tmp_path / "a.parquet").problem and "0xfc" in fault(tmp_path / "a.parquet").problem
    for name in ("a.txt", "a.parquet"):
        assert sorted(texts_of(tmp_path / name, **SKIP)) == ["one", "three"]


def test_a_column_that_one_line_lacks_or_fills_otherwise_is_told_with_the_columns_of_that_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"texts": "b", "id": 1}\n{"text": "c"}\n')
    error = fault(tmp_path / "a.jsonl")
    assert (
        error.problem == f"source 'mine': line 2 of {tmp_path / 'a.jsonl'} has no column 'text'; it has 'texts', 'id'"
    )
    assert error.remedy == "set data.sources.mine.column: texts, or set data.sources.mine.on_bad_row: skip"
    assert sorted(texts_of(tmp_path / "a.jsonl", **SKIP)) == ["a", "c"]
    (tmp_path / "b.jsonl").write_text('{"text": ["a", 1], "body": "a"}\n')
    assert "column 'text' of line 1 of" in fault(tmp_path / "b.jsonl").problem
    problem = fault(tmp_path / "b.jsonl", **SKIP).problem
    assert (
        "(1 row: 0 to train on" in problem
        and "1 bad" in problem
        and "line 1: column 'text' holds ['a', 1], not a text" in problem
    )


def test_a_column_that_no_line_has_is_told_before_the_file_is_read_for_its_digest(tmp_path):
    """The second file's first row; its last one is told when it is read."""
    write(tmp_path / "train-0.jsonl", TEXTS)
    (tmp_path / "train-1.jsonl").write_text('\n{"body": "a"}\n')
    with pytest.raises(DestructError, match=r"line 2 of .*train-1.jsonl has no column 'text'; it has 'body'"):
        opened(tmp_path)
    assert opened(tmp_path, **SKIP).fingerprint
    (tmp_path / "train-1.jsonl").write_text('{"text": "a"}\n{"body": "a"}\n')
    assert opened(tmp_path).fingerprint and "line 2 of" in fault(tmp_path).problem


@pytest.mark.parametrize(
    ("options", "row"),
    [
        ({"format": "dialog", "column": "talk"}, {"talk": {"a": ["b"]}}),
        ({"format": "translation", "column": "pair"}, {"pair": {"en": 1}}),
        ({"format": "fields", "template": "{a}"}, {"a": {"b": "c"}}),
        ({"format": "fields", "template": "{a}"}, {"a": ["b"]}),
    ],
)
def test_a_line_whose_nested_value_is_of_another_type_is_a_bad_row(tmp_path, options, row):
    good = {"talk": ["a", "b"], "pair": {"en": "a b"}, "a": 1}
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (good, good | row, good | {"a": 2})))
    assert "line 2 of" in fault(tmp_path / "a.jsonl", **options).problem
    (tmp_path / "b.jsonl").write_text(json.dumps(good | row))
    assert "1 bad" in fault(tmp_path / "b.jsonl", **options, **SKIP).problem
