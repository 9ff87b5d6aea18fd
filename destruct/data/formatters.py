"""Formats: how a row of a table becomes the text of a document."""

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from destruct.config.data import SourceConfig
from destruct.errors import DestructError
from destruct.user_function import import_function

Row = dict[str, Any]
RenderChat = Callable[[list[dict[str, str]]], str]
"""Messages, each of a role and a content -> their text with the tokenizer's special tokens in it."""


@dataclass(frozen=True, slots=True)
class FormatContext:
    """What the formats need besides the row."""

    column: str
    """The column to read; empty for the formats that read whole rows."""
    language: str
    template: str
    render_chat: RenderChat | None
    """None: the tokenizer has no chat template."""


Formatter = Callable[[Row, FormatContext], str | None]
"""A row's text; None or white space leaves the row out.  A DestructError names neither source nor row."""


def text(row: Row, context: FormatContext) -> str | None:
    """The column as it is."""
    return row[context.column]


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
    return texts[context.language]


def chat(row: Row, context: FormatContext) -> str | None:
    """The messages of a conversation, in the tokenizer's chat template; keys besides role and content are left out."""
    messages = row[context.column]
    if not messages:
        return None
    render = _chat_template(context)
    if not isinstance(messages, list) or not all(map(_is_message, messages)):
        odd = next((m for m in messages if not _is_message(m)), None) if isinstance(messages, list) else messages
        raise DestructError(
            f"column {context.column!r} holds {_shown(odd)}, not a message with the texts role and content",
            "leave such rows out of the data, or give format a module:function",
        )
    try:
        return render([{"role": message["role"], "content": message["content"]} for message in messages])
    except Exception as error:  # the template is the tokenizer's: it refuses roles that it does not know
        raise DestructError(
            f"the tokenizer's chat template refuses the messages of column {context.column!r}: "
            f"{type(error).__name__}: {error}",
            "leave such rows out of the data, or give format a module:function",
        ) from error


def _chat_template(context: FormatContext) -> RenderChat:
    if context.render_chat is None:
        raise DestructError(
            "format: chat needs a chat template, and the tokenizer has none",
            "let data.tokenizer.path name a chat model, or write the rows out with format: fields",
        )
    return context.render_chat


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))


def fields(row: Row, context: FormatContext) -> str | None:
    """The template with the row's columns in it; None where one of them is null."""
    return None if None in row.values() else context.template.format_map(row)


def user_formatter(path: str) -> Formatter:
    """The user's `module:function`, called as f(row) with a dictionary column -> value; it returns a text or None.

    Raises:
        DestructError: the module or the function cannot be imported (here); the function raises, or returns something
            else (when called).
    """
    function = import_function("format", path)
    remedy = f"fix {path}: it gets a row as a dictionary and returns its text, or None to leave the row out"

    def call(row: Row, context: FormatContext) -> str | None:
        try:
            made = function(row)
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{type(error).__name__}: {error} ({last.filename}:{last.lineno})"
            raise DestructError(f"format {path!r} raised {where}", remedy) from error
        if made is not None and not isinstance(made, str):
            raise DestructError(f"format {path!r} returned a value of type {type(made).__name__}, not a text", remedy)
        return made

    return call


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
        render_chat: of the tokenizer; None where it has no chat template.

    Raises:
        DestructError: the user's function cannot be imported, or `chat` has no template.
    """

    def __init__(self, source: SourceConfig, render_chat: RenderChat | None):
        self.columns = source.columns
        """What a row must hold; None for every column there is."""
        column = self.columns[0] if self.columns and source.format != "fields" else ""
        self._context = FormatContext(column, source.language, source.template or "", render_chat)
        self._formatter = FORMATTERS.get(source.format) or user_formatter(source.format)
        if self._formatter is chat:
            _chat_template(self._context)  # told before anything is downloaded

    def __call__(self, row: Row) -> str | None:
        """The text of a row; None or white space where the row is to be left out."""
        return self._formatter(row, self._context)
