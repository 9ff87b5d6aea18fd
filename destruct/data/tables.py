"""What every origin of rows keeps: a local file, a data set of the hub, an embedded text."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from destruct.errors import DestructError

Row = dict[str, Any]
"""Column -> value."""
Features = dict[str, Any]
"""Column -> its type, as Hugging Face `datasets` describes it."""


class Table(Protocol):
    """Rows on the disk, read when they are asked for."""

    @property
    def origin(self) -> str:
        """What errors call it: the path, or the id on the hub with configuration and split."""

    @property
    def unit(self) -> str:
        """What its rows are counted by: "line", from 1, or "row", from 0."""

    @property
    def features(self) -> Features | None:
        """Its columns; None where rows have no schema in common."""

    def rows(self, columns: list[str] | None) -> Iterator[tuple[int, Row | DestructError]]:
        """Number and content of each row, in order and in constant memory; the fault that stands in a row's place.

        Args:
            columns: to read, which may be more than are read; None for all there are.

        Raises:
            DestructError: the table as a whole cannot be read.
        """


class Origin(Protocol):
    """Where the rows of a source are: found, and not yet read."""

    @property
    def own_held_out(self) -> bool:
        """Whether some rows are held out by a file or a split of their own."""

    def content(self) -> Any:
        """In JSON's types, what changes whenever a row does.  Raises DestructError where a file cannot be read."""

    def tables(self) -> list[list[Table]]:
        """The tables to train on and, if held out by themselves, those held out.

        Raises:
            DestructError: they cannot be had.
        """

    def check_unchanged(self) -> None:
        """After a pass: raises DestructError where what was read need not be what `content` told apart."""


@dataclass(frozen=True, slots=True)
class TextTable:
    """Texts in memory as a table of one column."""

    origin: str
    texts: list[str]
    unit: str = "row"
    features: None = None

    def rows(self, columns: list[str] | None) -> Iterator[tuple[int, Row | DestructError]]:
        """As `Table` says."""
        for number, text in enumerate(self.texts):
            yield number, {"text": text}
