"""Formats: hand-written rows and the texts they become, and what each bad row says."""

import json
import sys

import pytest

from destruct.config.data import FORMATS, SourceConfig
from destruct.data.columns import KINDS
from destruct.data.formatters import FORMATTERS, Chat, RowFormat
from destruct.errors import DestructError
from tests.data.corpora import opened

MODULE = """\
def joined(row):
    return " / ".join(row["parts"]) if row["parts"] else None

def number(row):
    return {"one": 3, "two": ("a", 3), "three": ("a", "b", "c")}[row["what"]]

def careless(row):
    return row["title"].upper()

LIST = [1]

def asked(row):
    return row["question"], row["answer"]
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "own_formats.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "own_formats.py"
    sys.modules.pop("own_formats", None)


def marked(messages: list[dict[str, str]], answer_next: bool) -> str:
    """A chat template of our own, which knows two roles."""
    if {message["role"] for message in messages} - {"user", "assistant"}:
        raise ValueError("only user and assistant speak")
    text = "".join(f"<|{message['role']}|>{message['content']}" for message in messages)
    return f"{text}<|assistant|>" if answer_next else text


def made(row, render=None, **options):
    """Text and end of its prompt."""
    chat = None if render is None else Chat("", render)
    return RowFormat(SourceConfig.model_validate({"path": "a.parquet", **options}), chat)(row)


def formatted(row, render=None, **options):
    return made(row, render, **options)[0]


def fault(row, render=None, **options) -> DestructError:
    with pytest.raises(DestructError) as caught:
        formatted(row, render, **options)
    return caught.value


def test_the_table_the_config_and_the_columns_know_the_same_formats():
    assert tuple(FORMATTERS) == FORMATS == tuple(KINDS)


def test_a_text_is_taken_as_it_is():
    assert formatted({"text": " = A title = \n", "id": 3}) == " = A title = \n"
    assert formatted({"article": "news", "text": "other"}, column="article") == "news"
    assert not formatted({"text": None})


def test_the_turns_of_a_dialog_stand_one_below_the_other_without_the_space_around_them():
    row = {"dialog": ["The kitchen stinks . ", " I'll throw out the garbage .", "", "  "]}
    assert formatted(row, format="dialog") == "The kitchen stinks .\nI'll throw out the garbage ."
    assert formatted({"turns": ["Hi."]}, format="dialog", column="turns") == "Hi."
    assert not formatted({"dialog": None}, format="dialog")
    assert not formatted({"dialog": []}, format="dialog")


@pytest.mark.parametrize(
    ("turns", "shown"),
    [
        ("Hi.", "'Hi.'"),
        (["Hi.", None], "['Hi.', None]"),
        ([{"text": "Hi."}], "[{'text': 'Hi.'}]"),
        ([["x" * 80]], f"[['{'x' * 54}..."),
    ],
)
def test_a_dialog_that_is_no_list_of_texts_is_shown(turns, shown):
    assert fault({"dialog": turns}, format="dialog").problem == f"column 'dialog' holds {shown}, not a list of texts"


def test_a_translation_gives_the_text_of_one_language():
    row = {"translation": {"en": "Resumption of the session", "fr": "Reprise de la session"}}
    assert formatted(row, format="translation") == "Resumption of the session"
    assert formatted(row, format="translation", language="fr") == "Reprise de la session"
    assert not formatted({"translation": {"en": None, "fr": "x"}}, format="translation")
    assert not formatted({"translation": None}, format="translation")


def test_a_language_that_is_not_there_is_told_with_those_that_are():
    error = fault({"translation": {"de": "a", "fr": "b"}}, format="translation")
    assert error.problem == "column 'translation' has no language 'en'; it has 'de', 'fr'"
    assert "language" in error.remedy
    assert "holds 'a', not a text in each language" in fault({"translation": "a"}, format="translation").problem


def test_a_chat_is_rendered_by_the_tokenizers_template_from_role_and_content_alone():
    row = {"messages": [{"role": "user", "content": "2+2?", "name": "x"}, {"role": "assistant", "content": "4"}]}
    assert formatted(row, marked, format="chat") == "<|user|>2+2?<|assistant|>4"
    assert not formatted({"messages": []}, marked, format="chat")
    assert not formatted({"messages": None}, marked, format="chat")


USER, ASSISTANT = ({"role": role, "content": role[0]} for role in ("user", "assistant"))


@pytest.mark.parametrize(
    ("messages", "prompt", "continuation"),
    [
        ([USER, ASSISTANT], "<|user|>u<|assistant|>", "a"),
        ([USER, ASSISTANT, USER, ASSISTANT], "<|user|>u<|assistant|>a<|user|>u<|assistant|>", "a"),
        ([USER], "<|user|>u<|assistant|>", ""),
        ([USER, ASSISTANT, USER], "<|user|>u<|assistant|>a<|user|>u<|assistant|>", ""),
    ],
)
def test_the_prompt_of_a_chat_ends_where_the_assistants_last_message_begins(messages, prompt, continuation):
    assert made({"messages": messages}, marked, format="chat") == (prompt + continuation, len(prompt))


def closing(messages: list[dict[str, str]], answer_next: bool) -> str:
    """A template that names the number of messages first, and so begins no two conversations alike."""
    return f"{len(messages)}: {marked(messages, answer_next)}"


def strict(messages: list[dict[str, str]], answer_next: bool) -> str:
    """A template that will not ask for an answer to nothing, nor to an answer."""
    if answer_next and (not messages or messages[-1]["role"] == "assistant"):
        raise ValueError("after user comes assistant")
    return marked(messages, answer_next)


def test_where_the_prompt_alone_reads_otherwise_or_is_refused_no_prompt_is_told_apart():
    both = {"messages": [USER, ASSISTANT]}
    assert made(both, closing, format="chat") == ("2: <|user|>u<|assistant|>a", None)
    assert made({"messages": [ASSISTANT]}, strict, format="chat") == ("<|assistant|>a", None)
    assert made({"messages": [ASSISTANT, ASSISTANT]}, strict, format="chat") == ("<|assistant|>a<|assistant|>a", None)
    assert made({"messages": [USER]}, closing, format="chat")[1] == len("1: <|user|>u<|assistant|>")


def test_a_chat_without_a_template_is_refused_before_a_row_is_there():
    source = SourceConfig.model_validate({"path": "a.parquet", "format": "chat"})
    with pytest.raises(DestructError, match="needs a chat template, and the tokenizer has none") as caught:
        RowFormat(source, None)
    assert "data.tokenizer.path" in caught.value.remedy and "format: fields" in caught.value.remedy


def test_a_message_without_text_and_a_role_that_the_template_refuses_are_told():
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}]
    problem = fault({"messages": messages}, marked, format="chat").problem
    assert "column 'messages' holds {'role': 'assistant', 'content': None}, not a message" in problem
    assert "holds 'abc', not a message" in fault({"messages": "abc"}, marked, format="chat").problem
    problem = fault({"messages": [{"role": "system", "content": "Be brief."}]}, marked, format="chat").problem
    assert problem.endswith("column 'messages': ValueError: only user and assistant speak")


def test_fields_fill_the_template_and_a_null_leaves_the_row_out():
    options = {"format": "fields", "template": "Question: {question}\nAnswer: {answer} {{{question}}}"}
    row = {"question": "How many?", "answer": 4}
    assert formatted(row, **options) == "Question: How many?\nAnswer: 4 {How many?}"
    assert not formatted({"question": "How many?", "answer": None}, **options)


def test_a_value_with_braces_in_it_is_not_a_template():
    assert formatted({"a": "{b} {"}, format="fields", template="{a}") == "{b} {"


def test_a_users_function_gets_the_row_and_returns_its_text_or_none(module):
    assert formatted({"parts": ["a", "b"], "id": 1}, format="own_formats:joined") == "a / b"
    assert not formatted({"parts": [], "id": 1}, format="own_formats:joined")


def test_a_users_pair_is_a_prompt_and_its_continuation(module):
    options = {"format": "own_formats:asked"}
    assert made({"question": "2+2?", "answer": " 4"}, **options) == ("2+2? 4", 4)
    assert made({"question": "2+2?", "answer": ""}, **options) == ("2+2?", 4)
    assert made({"question": "", "answer": "4"}, **options) == ("4", 0)
    assert made({"parts": ["a"]}, format="own_formats:joined") == ("a", None)


@pytest.mark.parametrize(
    ("row", "options", "problem"),
    [
        ({"text": 3}, {}, "column 'text' holds 3, not a text"),
        ({"translation": {"en": 3}}, {"format": "translation"}, "language 'en' of column 'translation' holds 3, not"),
        ({"a": [1]}, {"format": "fields", "template": "{a}"}, "column 'a' holds [1], not text or a number"),
        ({"a": 1}, {"format": "fields", "template": "{a}{b}"}, "it has no column 'b'"),
        ({"body": "a"}, {}, "it has no column 'text'"),
    ],
)
def test_a_row_without_what_the_format_reads_is_told(row, options, problem):
    assert fault(row, **options).problem.startswith(problem)


def test_a_users_function_that_fails_is_told_with_its_line_and_its_type(module):
    problem = fault({"title": None}, format="own_formats:careless").problem
    assert problem.startswith("format 'own_formats:careless' raised AttributeError: ")
    assert problem.endswith(f"({module}:8)")
    for what, types in (("one", "int"), ("two", "str and int"), ("three", "tuple")):
        error = fault({"what": what}, format="own_formats:number")
        assert f"returned a value of type {types}, not a text or two" in error.problem
        assert "own_formats:number" in error.remedy


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("absent_formats:f", "ModuleNotFoundError"),
        ("own_formats:absent", "AttributeError"),
        ("own_formats:LIST", "is [1], not a function"),
    ],
)
def test_a_users_function_that_is_not_there_is_found_before_any_row(module, path, problem):
    with pytest.raises(DestructError) as caught:
        RowFormat(SourceConfig.model_validate({"path": "a.parquet", "format": path}), None)
    assert path in caught.value.problem and problem in caught.value.problem


def test_a_template_with_a_continuation_is_the_prompt(tmp_path):
    rows = [
        {"prompt": "2+2=", "completion": "4"},
        {"prompt": "say", "completion": ""},
        {"prompt": None, "completion": "x"},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 3))
    source = opened(tmp_path / "a.jsonl", format="fields", template="Q: {prompt}", continuation=" {completion}!")
    made = {(document.text, document.prompt_end) for document in source.documents()}
    assert made == {("Q: 2+2= 4!", 7), ("Q: say !", 6)}
