"""Formats: how a row of a table becomes the text of a document, and where its prompt ends."""

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from destruct.config.data import SourceConfig
from destruct.data.tables import Row
from destruct.errors import DestructError
from destruct.user_function import import_function

Messages = list[dict[str, str]]
"""Each of a role and a content."""
Made = str | tuple[str, str] | None
"""The text of a row; its prompt and the continuation, which may be empty; or None, or white space, to leave it out."""


@dataclass(frozen=True, slots=True)
class Chat:
    """How the run's tokenizer writes conversations."""

    template: str
    """Whatever decides what `render` writes: for fingerprints alone."""
    render: Callable[[Messages, bool], str]
    """Messages, and whether the assistant is to speak next -> their text with the tokenizer's special tokens in it."""


@dataclass(frozen=True, slots=True)
class FormatContext:
    """What the formats need besides the row."""

    column: str
    """The column to read; empty for the formats that read whole rows."""
    language: str
    template: str
    continuation: str | None
    """A template; None: there is no prompt of its own."""
    chat: Chat | None
    """None: the tokenizer has no chat template."""


Formatter = Callable[[Row, FormatContext], Made]
"""What is made of a row.  A DestructError names neither source nor row."""


def text(row: Row, context: FormatContext) -> str | None:
    """The column as it is."""
    return _text_or_none(row[context.column], f"column {context.column!r}")


def dialog(row: Row, context: FormatContext) -> str | None:
    """The turns of a dialogue, without white space around them, one below the other."""
    turns = row[context.column]
    if turns is None:
        return None
    if not isinstance(turns, list) or not all(isinstance(turn, str) for turn in turns):
        raise DestructError(
            f"column {context.column!r} holds {_shown(turns)}, not a list of texts",
            "write each turn as one text, or give format a module:function",
        )
    return "\n".join(filter(None, map(str.strip, turns)))


def translation(row: Row, context: FormatContext) -> str | None:
    """The text in one language, of a dictionary language -> text."""
    texts = row[context.column]
    if texts is None:
        return None
    if not isinstance(texts, dict):
        raise DestructError(
            f"column {context.column!r} holds {_shown(texts)}, not a text in each language",
            "give column the name of a column of translations, or format another value",
        )
    if context.language not in texts:
        raise DestructError(
            f"column {context.column!r} has no language {context.language!r}; it has {', '.join(map(repr, texts))}",
            "set the source's language to one of them",
        )
    return _text_or_none(texts[context.language], f"language {context.language!r} of column {context.column!r}")


def chat(row: Row, context: FormatContext) -> Made:
    """A conversation in the tokenizer's chat template; keys of its messages besides role and content are left out.

    The prompt is what stands before the last message, if that is the assistant's, with the template's words that begin
    its turn; else all of it.  Where a template writes the beginning otherwise than the whole begins, or refuses it, no
    prompt is told apart.
    """
    messages = row[context.column]
    if not messages:
        return None
    render = _chat_of(context).render
    if not isinstance(messages, list) or not all(map(_is_message, messages)):
        odd = next((m for m in messages if not _is_message(m)), None) if isinstance(messages, list) else messages
        raise DestructError(
            f"column {context.column!r} holds {_shown(odd)}, not a message with the texts role and content",
            "leave such rows out of the data, or give format a module:function",
        )
    plain = [{"role": message["role"], "content": message["content"]} for message in messages]
    is_answered = plain[-1]["role"] == "assistant"
    try:
        whole = render(plain, not is_answered)
    except Exception as error:  # the template is the tokenizer's: it refuses roles that it does not know
        raise DestructError(
            f"the tokenizer's chat template refuses the messages of column {context.column!r}: "
            f"{type(error).__name__}: {error}",
            "leave such rows out of the data, or give format a module:function",
        ) from error
    if not is_answered:
        return whole, ""
    prompt = _prompt(render, plain[:-1])
    return (prompt, whole.removeprefix(prompt)) if prompt and whole.startswith(prompt) else whole


def _prompt(render: Callable[[Messages, bool], str], messages: Messages) -> str | None:
    try:
        return render(messages, True)
    except Exception:  # a template may want a question, and there is none where the assistant spoke first
        return None


def _chat_of(context: FormatContext) -> Chat:
    if context.chat is None:
        raise DestructError(
            "format: chat needs a chat template, and the tokenizer has none",
            "let data.tokenizer.path name a chat model, or write the rows out with format: fields",
        )
    return context.chat


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))


def fields(row: Row, context: FormatContext) -> Made:
    """The template with the row's columns in it, and the continuation's; None where one of them is null."""
    for column, value in row.items():
        if isinstance(value, (list, dict, bytes)):
            raise DestructError(f"column {column!r} holds {_shown(value)}, not text or a number", "fix it")
    if None in row.values():
        return None
    text = context.template.format_map(row)
    return text if context.continuation is None else (text, context.continuation.format_map(row))


def user_formatter(path: str) -> Formatter:
    """The user's `module:function`, called as f(row) with a dictionary column -> value; it returns a text, a pair of
    prompt and continuation, or None.

    Raises:
        DestructError: the module or the function cannot be imported (here); the function raises, or returns something
            else (when called).
    """
    function = import_function("format", path)
    remedy = f"fix {path}: it gets a row as a dictionary and returns its text, a pair (prompt, continuation), or None"

    def call(row: Row, context: FormatContext) -> Made:
        try:
            made = function(row)
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{type(error).__name__}: {error} ({last.filename}:{last.lineno})"
            raise DestructError(f"format {path!r} raised {where}", remedy) from error
        parts = made if isinstance(made, tuple) and len(made) == 2 else (made,)
        if made is not None and not all(isinstance(part, str) for part in parts):
            types = " and ".join(type(part).__name__ for part in parts)
            raise DestructError(f"format {path!r} returned a value of type {types}, not a text or two", remedy)
        return made

    return call


def _text_or_none(value: Any, place: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise DestructError(f"{place} holds {_shown(value)}, not a text", "fix it")
    return value


def _shown(value: Any) -> str:
    """A value in at most 60 characters."""
    written = repr(value)
    return written if len(written) <= 60 else f"{written[:57]}..."


FORMATTERS: dict[str, Formatter] = {
    "text": text,
    "dialog": dialog,
    "translation": translation,
    "chat": chat,
    "fields": fields,
}


class RowFormat:
    """What turns the rows of one source into texts.

    Args:
        source: its section.
        chat: of the tokenizer; None where it has no chat template.

    Raises:
        DestructError: the user's function cannot be imported, or `chat` has no template.
    """

    def __init__(self, source: SourceConfig, chat: Chat | None):
        self.columns = source.columns
        """What a row must hold; None for every column there is."""
        column = self.columns[0] if self.columns and source.format != "fields" else ""
        self._context = FormatContext(column, source.language, source.template or "", source.continuation, chat)
        self._formatter = FORMATTERS.get(source.format) or user_formatter(source.format)
        if source.format == "chat":
            _chat_of(self._context)  # told before anything is downloaded

    def __call__(self, row: Row) -> tuple[str, int | None]:
        """The text of a row, empty or white space where the row is to be left out, and the characters of its prompt.

        Raises:
            DestructError: it lacks a column, or the format cannot make a text of it.
        """
        if self.columns is not None:
            for column in self.columns:
                if column not in row:
                    raise DestructError(f"it has no column {column!r}", "fix it")
            row = {column: row[column] for column in self.columns}
        made = self._formatter(row, self._context)
        if isinstance(made, tuple):
            return "".join(made), len(made[0])
        return made or "", None
