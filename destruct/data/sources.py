"""From a source of the config to a stream of documents: opened first, then read whenever somebody asks.

Opening finds whatever can be known without reading: paths, columns, the hub's commit.  The rest of the data's faults
are found by the first pass, before any model exists.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from destruct.config.data import DataConfig, SourceConfig
from destruct.data.columns import check_columns
from destruct.data.documents import Document, Reading, Tally, text_digest
from destruct.data.embedded import EMBEDDED
from destruct.data.files import LocalFiles, open_files
from destruct.data.fingerprints import FileDigests, code_digest, fingerprint, function_digest, texts_digest
from destruct.data.formatters import FORMATTERS, Chat, RowFormat
from destruct.data.holding_out import hold_out
from destruct.data.loading import HubData, open_hub
from destruct.data.stream import StreamSource
from destruct.data.tables import Origin, Table, TextTable
from destruct.errors import DestructError
from destruct.seeding import derive


class Source:
    """One data set of the mixture, opened; `open_source` makes it.

    Args:
        name: key of the source in `data.sources`.
        source: its section.
        config: the whole data section.
        seed: the run's seed.
        origin: where its rows are.
        row_format: what makes texts of them.
        fingerprint: see below.
    """

    def __init__(
        self,
        name: str,
        source: SourceConfig,
        config: DataConfig,
        seed: int,
        origin: Origin,
        row_format: RowFormat,
        fingerprint: str,
    ):
        self.name = name
        self.marked_up = source.format == "chat"
        """The texts hold the tokenizer's special tokens as such, not as characters that look like them."""
        self.fingerprint = fingerprint
        """32 hexadecimal digits, which change whenever what `documents` gives could."""
        self.tally: Tally | None = None
        """Of the last pass that went to its end."""
        self._source, self._origin, self._row_format = source, origin, row_format
        self._fraction, self._seed = config.validation_fraction, seed

    def documents(self) -> Iterator[Document]:
        """Read it once, in constant memory but for what `deduplicate` and a held-out file or split need.

        A folder with a validation file, and a hub source with a validation split, are split as they say: the held-out
        documents come first, and a text that is among them is left out of training.  Elsewhere `hold_out` decides by a
        hash of the text, in the order of the rows.

        Raises:
            DestructError: a data set cannot be downloaded, a column is missing or of another type, a row cannot be made
                a text, a file cannot be read, there is no document that passes the filters, or not one to hold out; or,
                after the last document, a file has changed since it was opened.
        """
        train, *held_out = self._origin.tables()
        given: Counter[bool] = Counter()
        readings = [Reading(self.name, self._source, self._row_format) for _ in range(1 + len(held_out))]
        stream = self._split(readings, train, held_out)
        for document in stream:
            given[document.held_out] += 1
            yield document
        self._origin.check_unchanged()
        counts = sum((reading.counts for reading in readings), Counter())
        self.tally = Tally.of(counts, given[False], given[True])

    def _split(self, readings: list[Reading], train: list[Table], held_out: list[list[Table]]) -> Iterator[Document]:
        if not held_out:
            yield from hold_out(self.name, readings[0].documents(train), self._fraction, self._seed)
            return
        digests: set[int] = set()
        for document in readings[1].documents(held_out[0], held_out=True):
            digests.add(text_digest(document.asked))
            yield document
        yield from readings[0].documents(train, elsewhere=digests)


AnySource = Source | StreamSource


def open_sources(
    config: DataConfig, seed: int, chat: Chat | None = None, memory: Path | None = None
) -> list[AnySource]:
    """Open every source of the config, in its order; arguments and errors are those of `open_source`."""
    return [open_source(name, source, config, seed, chat, memory) for name, source in config.sources.items()]


def open_source(
    name: str,
    source: SourceConfig,
    config: DataConfig,
    seed: int,
    chat: Chat | None = None,
    memory: Path | None = None,
) -> AnySource:
    """Find a source and tell what it is, without making a document of it.

    Local files are read for their digest, unless they are remembered; of a data set of the hub nothing but the card and
    the list of files is downloaded.

    Args:
        name: key of the source in `data.sources`.
        source: its section.
        config: the whole data section (root, held-out share, size of embedded texts).
        seed: the run's seed; it decides the embedded text and the split.
        chat: for `format: chat`; None where the tokenizer has no chat template.
        memory: folder in which digests of files are kept from run to run; None to read the files each time.

    Raises:
        DestructError: a path or data set is missing, cannot be read, or has not the columns that the format reads.
    """
    try:
        row_format = RowFormat(source, chat)
    except DestructError as error:
        raise DestructError(f"source {name!r}: {error.problem}", error.remedy, error.exit_code) from error
    origin = _origin(name, source, config, seed, memory)
    if isinstance(origin, LocalFiles):
        _check_tables(name, source, row_format, origin)
    facts = {
        "content": origin.content(),
        "source": source.model_dump(exclude=_NOT_THE_TEXTS),
        "held out": None if origin.own_held_out else [config.validation_fraction, seed],
        "code": code_digest(),
        "template": chat.template if chat is not None and source.format == "chat" else None,
        "function": None if source.format in FORMATTERS else function_digest(source.format),
    }
    if isinstance(origin, HubData) and source.streaming:
        facts["shard"] = source.shard_mib
        return StreamSource(name, source, config, seed, origin, row_format, fingerprint(facts))
    return Source(name, source, config, seed, origin, row_format, fingerprint(facts))


_NOT_THE_TEXTS = {
    "embedded", "path", "hub", "config", "revision", "split", "validation_split",  # their content counts
    "streaming", "shard_mib", "learnable", "prior", "on_exhausted", "max_epochs",
}  # fmt: skip
"""Keys of a source that its fingerprint does not hold as they are written."""


def _origin(name: str, source: SourceConfig, config: DataConfig, seed: int, memory: Path | None) -> Origin:
    if source.embedded is not None:
        texts = EMBEDDED[source.embedded](config.embedded_bytes, derive(seed, "embedded", name))
        return _Embedded(TextTable(f"the embedded text {source.embedded!r}", texts))
    root = None if config.root is None else Path(config.root).expanduser()
    if source.path is not None:
        path = Path(source.path).expanduser()
        place, remedy = path if root is None else root / path, f"set data.sources.{name}.path to a file or folder"
    elif root is None:
        return open_hub(name, source)
    else:
        place, remedy = root / name, f"put train.* of {source.hub} there, or leave data.root out to download it"
    return open_files(name, place, remedy, FileDigests(memory))


def _check_tables(name: str, source: SourceConfig, row_format: RowFormat, files: LocalFiles) -> None:
    """Columns by each file's schema, or else by its first row: a digest of large files takes minutes."""
    for table in (table for part in files.parts for table in part):
        if table.features is not None:
            check_columns(name, source, table.origin, table.features)
        elif source.on_bad_row == "error" and source.format in FORMATTERS:
            next(Reading(name, source, row_format).formatted([table]), None)


@dataclass(frozen=True, slots=True)
class _Embedded:
    """An embedded text, made."""

    table: TextTable
    own_held_out: bool = False

    def content(self) -> str:
        return texts_digest(self.table.texts)

    def tables(self) -> list[list[Table]]:
        return [[self.table]]

    def check_unchanged(self) -> None:
        """It is in memory."""
