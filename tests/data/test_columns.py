"""Columns: what a format reads is asked for before a row is read, and the remedy names a column that fits."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from destruct.data.formatters import Chat
from tests.data import corpora
from tests.data.corpora import texts_of


def load(file, **options):
    return sorted(texts_of(file, **options))


def fault(file, **options):
    return corpora.fault(file, chat=Chat("", lambda messages, answer: ""), **options)


@pytest.fixture
def table(tmp_path):
    """Writes columns as a Parquet file."""

    def write(**columns):
        pq.write_table(pa.table(columns), tmp_path / "a.parquet")
        return tmp_path / "a.parquet"

    return write


TURNS = [["Hello.", "Hi."], ["Bye."]]
PAIRS = [{"en": "yes", "fr": "oui"}, {"en": "no", "fr": "non"}]
CHATS = [[{"role": "user", "content": word}] for word in ("a", "b")]


@pytest.mark.parametrize(
    "type_", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_a_text_is_a_text_however_arrow_keeps_it(table, type_):
    turns = pa.array([["c", "d"], ["e"], None], pa.large_list(pa.large_string()))
    file = table(text=pa.array(["a", None, "b"], type_), turns=turns)
    assert load(file) == ["a", "b"]
    assert load(file, format="dialog", column="turns") == ["c\nd", "e"]


def test_a_missing_column_names_those_there_are_nearest_first(table):
    error = fault(table(id=[1], title=["b"], articles=["a"]), column="article")
    assert "has no column 'article'; it has 'articles', 'title', 'id'" in error.problem
    assert error.remedy == "set data.sources.mine.column: articles"


@pytest.mark.parametrize("values", [[1, 2], [["a"], ["b"]], [{"en": "a"}, {"en": "b"}]])
def test_a_column_of_another_type_is_named_with_the_columns_of_text(table, values):
    error = fault(table(text=values, other=["x", "y"]))
    assert "column 'text'" in error.problem and "not text" in error.problem
    assert error.remedy == "set data.sources.mine.column: other"


def test_the_column_proposed_for_a_missing_one_fits_the_format(table):
    """`texts` is nearer to `text` than `body` is, but it holds lists."""
    assert fault(table(texts=[["a"], ["b"]], body=["x", "y"])).remedy == "set data.sources.mine.column: body"


@pytest.mark.parametrize(
    ("columns", "format", "column"),
    [
        ({"act": [1, 2], "dialog": TURNS}, "dialog", "dialog"),
        ({"translation": PAIRS}, "translation", "translation"),
        ({"conversations": CHATS}, "chat", "conversations"),
    ],
)
def test_where_no_column_fits_the_format_that_would_fit_is_named_and_works(table, columns, format, column):
    error = fault(table(**columns))
    assert error.remedy == f"set data.sources.mine.format: {format} and data.sources.mine.column: {column}"
    chat = Chat("", lambda messages, answer: messages[0]["content"])
    expected = {"dialog": ["Bye.", "Hello.\nHi."], "translation": ["no", "yes"], "chat": ["a", "b"]}
    assert load(table(**columns), chat=chat, format=format, column=column) == expected[format]


def test_where_nothing_fits_at_all_a_function_is_proposed(table):
    error = fault(table(id=[1, 2]))
    assert error.remedy == "no column of it is text; write one, or give data.sources.mine.format a module:function"


@pytest.mark.parametrize(
    ("format", "column", "words"),
    [
        ("dialog", "translation", "a list of texts"),
        ("translation", "dialog", "a text in each language"),
        ("chat", "dialog", "a list of messages with role and content"),
        ("dialog", "messages", "a list of texts"),
    ],
)
def test_each_format_refuses_the_columns_of_the_others(table, format, column, words):
    error = fault(table(dialog=TURNS, translation=PAIRS, messages=CHATS), format=format, column=column)
    assert f"column '{column}' of" in error.problem and error.problem.endswith(f", not {words}")
    right = {"dialog": "dialog", "translation": "translation", "chat": "messages"}[format]
    assert error.remedy == f"set data.sources.mine.column: {right}"


def test_fields_of_text_and_numbers_are_filled_in_and_others_refused_by_name(table):
    file = table(question=["a?", "b?", "c?"], answer=[1, 2, None], choices=[["x"], ["y"], ["z"]])
    assert load(file, format="fields", template="{question} {answer}") == ["a? 1", "b? 2"]
    error = fault(file, format="fields", template="{question}: {choices}")
    assert "column 'choices'" in error.problem and error.problem.endswith("not text or a number")
    assert "data.sources.mine.template (those that can stand there: question, answer)" in error.remedy
    assert "has no column 'reply'; it has " in fault(file, format="fields", template="{reply}").problem


def test_a_jsonl_column_of_mixed_types_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": 3}\n')
    assert "not text" in fault(tmp_path / "a.jsonl").problem
