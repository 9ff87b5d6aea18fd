"""Whether the columns of a table suit a source's format, asked before a row is read where they are known by then."""

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from destruct.config.data import SourceConfig
from destruct.data.tables import Features, Row
from destruct.errors import DestructError


def features_of(schema: Any) -> Features:
    """Column -> its type, of an Arrow schema; a type that `datasets` does not know is told by Arrow's name of it."""
    import datasets  # a second of imports that embedded sources do not need
    import pyarrow

    features: Features = {}
    for field in schema:
        try:
            features |= datasets.Features.from_arrow_schema(pyarrow.schema([field.remove_metadata()]))
        except ValueError:
            features[field.name] = str(field.type)
    return features


def features_of_row(row: Row) -> Features:
    """What the columns of one row of JSON would be in a table."""
    import pyarrow

    features: Features = {}
    for column, value in row.items():
        try:
            features |= features_of(pyarrow.table({column: ["" if isinstance(value, str) else value]}).schema)
        except (pyarrow.ArrowException, ValueError, OverflowError):  # a list of unlike things, a large number
            features[column] = f"a {type(value).__name__} that is no column of a table"
    return features


def check_columns(name: str, source: SourceConfig, origin: str, features: Features) -> None:
    """Refuse a table that lacks what the source's format reads.

    Args:
        name: key of the source in `data.sources`.
        source: its section.
        origin: what errors call the table.
        features: of the table.

    Raises:
        DestructError: a column is missing, or of another type; the remedy names the nearest column that fits.
    """
    fault = column_fault(name, source, origin, features)
    if fault is not None:
        raise fault


def column_fault(name: str, source: SourceConfig, origin: str, features: Features) -> DestructError | None:
    """What `check_columns` would raise, for the same arguments."""
    kind = KINDS.get(source.format)
    if kind is None:  # the user's function takes what it finds
        return None
    for column in source.columns or []:
        if column not in features:
            there = ", ".join(map(repr, _by_nearness(column, features)))
            return DestructError(
                f"source {name!r}: {origin} has no column {column!r}; it has {there}",
                _remedy(name, source, column, features),
            )
        if not kind.fits(features[column]):
            return DestructError(
                f"source {name!r}: column {column!r} of {origin} is {features[column]}, not {kind.words}",
                _remedy(name, source, column, features),
            )
    return None


def _by_nearness(column: str, names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: -difflib.SequenceMatcher(None, column, name).ratio())


def _remedy(name: str, source: SourceConfig, column: str, features: Features) -> str:
    fitting = _by_nearness(column, [other for other, type_ in features.items() if KINDS[source.format].fits(type_)])
    key = f"data.sources.{name}"
    if source.format == "fields":
        there = f" (those that can stand there: {', '.join(fitting)})" if fitting else ""
        return f"name columns of the table in {key}.template{there}, or give {key}.format a module:function"
    if fitting:
        return f"set {key}.column: {fitting[0]}"
    for format, kind in KINDS.items():
        for other in _by_nearness(column, features):
            if format != "fields" and kind.fits(features[other]):
                return f"set {key}.format: {format} and {key}.column: {other}"
    return f"no column of it is {KINDS[source.format].words}; write one, or give {key}.format a module:function"


def _is_text(type_: Any) -> bool:
    # A column of nulls has the type null; it is text of which there is none.
    return getattr(type_, "dtype", None) in TEXT_TYPES


def _is_list_of_texts(type_: Any) -> bool:
    return _is_text(getattr(type_, "feature", None))


def _is_translation(type_: Any) -> bool:
    if isinstance(type_, dict):  # what Parquet and JSON make of it
        return bool(type_) and all(map(_is_text, type_.values()))
    return type(type_).__name__ == "Translation"


def _is_chat(type_: Any) -> bool:
    message = getattr(type_, "feature", None)
    return isinstance(message, dict) and all(_is_text(message.get(key)) for key in ("role", "content"))


def _is_scalar(type_: Any) -> bool:
    return type(type_).__name__ == "Value" and type_.dtype not in ("binary", "large_binary")


@dataclass(frozen=True, slots=True)
class Kind:
    """What a format wants of a column."""

    words: str
    fits: Callable[[Any], bool]


TEXT_TYPES = ("string", "large_string", "string_view", "null")

KINDS = {
    "text": Kind("text", _is_text),
    "dialog": Kind("a list of texts", _is_list_of_texts),
    "translation": Kind("a text in each language", _is_translation),
    "chat": Kind("a list of messages with role and content", _is_chat),
    "fields": Kind("text or a number", _is_scalar),
}
