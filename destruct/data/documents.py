"""From the rows of tables to documents: what is a bad row, and what is left out."""

from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Self

import xxhash

from destruct.config.data import SourceConfig
from destruct.data.columns import check_columns, column_fault, features_of_row
from destruct.data.formatters import RowFormat
from destruct.data.tables import Row, Table
from destruct.errors import DestructError


@dataclass(frozen=True, slots=True)
class Document:
    """One text to train on or to validate with."""

    text: str
    """Not empty; it can be written as UTF-8."""
    held_out: bool
    prompt_end: int | None = None
    """Characters of the text that are the prompt: all of them where there is no continuation; None: any will do."""

    @property
    def asked(self) -> str:
        """What must not stand on both sides: the prompt, which is trained on whatever follows it, or else the text."""
        return self.text[: self.prompt_end or None]


@dataclass(frozen=True, slots=True)
class Tally:
    """What became of the rows of a source, its held-out part included."""

    rows: int
    """Read; a cap on the documents ends the reading."""
    trained: int
    held_out: int
    empty: int
    """Nothing or white space alone, or left out by the user's function."""
    short: int
    """Of fewer than `min_characters`."""
    duplicate: int
    """The text came before."""
    also_held_out: int
    """The text, or the prompt, stands in the held-out file or split too."""
    bad: int
    """Skipped by `on_bad_row: skip`."""

    @classmethod
    def of(cls, counts: Mapping[str, int], trained: int, held_out: int) -> Self:
        """From `Reading.counts` and the documents given."""
        rest = {field.name: counts.get(field.name, 0) for field in fields(cls)}
        return cls(**rest | {"trained": trained, "held_out": held_out})

    @property
    def line(self) -> str:
        """The counts in words; what is left out for no row is not mentioned."""
        rows = f"{self.rows:,} row{'s' * (self.rows != 1)}"
        kept = f"{rows}: {self.trained:,} to train on, {self.held_out:,} held out"
        named = {name: count for name, count in asdict(self).items() if name not in ("rows", "trained", "held_out")}
        rest = [f"{count:,} {name.replace('_', ' ')}" for name, count in named.items() if count]
        return f"{kept}; left out: {', '.join(rest)}" if rest else kept


def text_digest(text: str) -> int:
    """128 bits that stand for a text."""
    return xxhash.xxh3_128_intdigest(text.encode())


class Reading:
    """One pass over one part of a source, the training part or the held-out one.

    Args:
        name: key of the source in `data.sources`.
        source: its section.
        row_format: what makes texts of its rows.
    """

    def __init__(self, name: str, source: SourceConfig, row_format: RowFormat):
        self.counts: Counter[str] = Counter()
        """Fields of `Tally` that end with a row -> how many."""
        self._name, self._source, self._format = name, source, row_format
        self._first_bad = ""  # what the first row that was skipped says, for a part that has no other

    def documents(
        self, tables: Sequence[Table], held_out: bool = False, elsewhere: Container[int] = (), taken: int = 0
    ) -> Iterator[Document]:
        """Documents of tables, in order, after the filters in the order that `min_characters` names.

        Args:
            tables: to read.
            held_out: of all these documents.
            elsewhere: digests of what may not be asked.
            taken: documents that came before, in a pass that this one goes on with.

        Raises:
            DestructError: a table cannot be read, a row is bad and not to be skipped, or no document is left.
        """
        seen: set[int] = set()
        for document in self.formatted(tables, held_out):
            reason = self._reason(document, elsewhere, seen)
            if reason is not None:
                self.counts[reason] += 1
                continue
            yield document
            taken += 1
            if taken == self._source.max_documents:
                break
        if not taken:
            raise self._nothing(tables)

    def _reason(self, document: Document, elsewhere: Container[int], seen: set[int]) -> str | None:
        """Why a document is left out; None where it is not."""
        text = document.text
        if not text or text.isspace():
            return "empty"
        if self._source.min_characters > 1 and len(text.strip()) < self._source.min_characters:
            return "short"
        if elsewhere and text_digest(document.asked) in elsewhere:
            return "also_held_out"
        if not self._source.deduplicate:
            return None
        digest = text_digest(text)
        if digest in seen:
            return "duplicate"
        seen.add(digest)
        return None

    def formatted(self, tables: Sequence[Table], held_out: bool = False) -> Iterator[Document]:
        """Documents of tables before any filter but that of bad rows; empty texts are among them.

        Raises:
            DestructError: as `documents`, but for the last cause.
        """
        for table in tables:
            if table.features is not None:
                check_columns(self._name, self._source, table.origin, table.features)
            for number, row in table.rows(self._format.columns):
                self.counts["rows"] += 1
                document = self._made(table, number, row, held_out)
                if document is not None:
                    yield document

    def _made(self, table: Table, number: int, row: Row | DestructError, held_out: bool) -> Document | None:
        try:
            if isinstance(row, DestructError):
                raise row
            text, prompt_end = self._format(row)
            _check_encodable(text)
        except DestructError as error:
            if self._source.on_bad_row == "error":
                raise self._bad(table, number, row, error) from error
            self._first_bad = self._first_bad or f"; {table.unit} {number}: {error.problem}"
            self.counts["bad"] += 1
            return None
        return Document(text, held_out, prompt_end)

    def _bad(self, table: Table, number: int, row: Row | DestructError, error: DestructError) -> DestructError:
        place = f"{table.unit} {number} of {table.origin}"
        problem, remedy = f"source {self._name!r}, {place}: {error.problem}", error.remedy
        if table.features is None and isinstance(row, dict):
            # A column that is missing, or of another type, is told as for a table whose schema says so.
            fault = column_fault(self._name, self._source, place, features_of_row(row))
            problem, remedy = (problem, remedy) if fault is None else (fault.problem, fault.remedy)
        return DestructError(problem, f"{remedy}, or set data.sources.{self._name}.on_bad_row: skip", error.exit_code)

    def _nothing(self, tables: Sequence[Table]) -> DestructError:
        columns = self._source.columns
        wanted = f" with text in column {columns[0]!r}" if self._source.format == "text" and columns else ""
        more = f" and {len(tables) - 1} more" if len(tables) > 1 else ""
        return DestructError(
            f"source {self._name!r}: {tables[0].origin}{more} holds no non-empty document that is not filtered out "
            f"({Tally.of(self.counts, 0, 0).line}{self._first_bad})",
            f"give data.sources.{self._name} a table{wanted}, loosen its filters, or remove the source",
        )


def _check_encodable(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DestructError(
            f"its text has the lone surrogate U+{ord(text[error.start]):04X} at character {error.start + 1}, which no "
            "tokenizer takes",
            "fix it",
        ) from error
