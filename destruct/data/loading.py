"""The one adapter to the Hugging Face hub, by `datasets`: its data sets as tables of rows."""

import errno
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from destruct.config.data import SourceConfig
from destruct.data.columns import check_columns
from destruct.data.hub_faults import PARQUET_EXPORT, hub_fault, hub_origin, is_network_fault, stream_fault
from destruct.data.tables import Features, Row, Table
from destruct.errors import DestructError
from destruct.exits import Exit

if TYPE_CHECKING:
    import datasets

_BATCH = 64  # rows decoded at once: a row of a corpus of books takes 400 kB


@dataclass(frozen=True, slots=True)
class HubTable:
    """One split, downloaded and on the disk."""

    name: str  # of the source, for errors
    source: SourceConfig
    origin: str
    data: "datasets.Dataset"
    unit: str = "row"

    @property
    def features(self) -> Features:
        """As `Table` says."""
        return self.data.features

    def rows(self, columns: list[str] | None) -> Iterator[tuple[int, Row | DestructError]]:
        """As `Table` says; what is not asked for is not read."""
        table = self.data if columns is None else self.data.select_columns(columns)
        number = 0
        with _faults_of(self.name, self.source):
            for batch in table.iter(batch_size=_BATCH):
                for values in zip(*batch.values(), strict=True):
                    yield number, dict(zip(batch, values, strict=True))
                    number += 1


@dataclass(frozen=True, slots=True)
class Place:
    """A place between two rows of a stream, as `datasets` finds it again."""

    state: dict[str, Any] | None = None
    """Of the stream before some batch of rows; None at its beginning."""
    behind: int = 0
    """Rows between that state and this place."""
    rows: int = 0
    """Between the beginning and this place."""


@dataclass(slots=True)
class HubStream:
    """One split, downloaded row by row while it is read and kept nowhere."""

    name: str  # of the source, for errors
    source: SourceConfig
    origin: str
    data: "datasets.IterableDataset"
    place: Place = Place()
    """Before the next row: of what `rows` gave none is after it, whatever was read ahead."""
    unit: str = "row"

    @property
    def features(self) -> Features | None:
        """As `Table` says."""
        return self.data.features

    def rows(self, columns: list[str] | None) -> Iterator[tuple[int, Row | DestructError]]:
        """The rows from `place` on, which moves with them; as `Table` says.

        From a place inside a file the file is downloaded from its beginning: to go on with an iterator is cheaper.
        """
        with _faults_of(self.name, self.source, self):
            data = self.data if columns is None or not self.features else self.data.select_columns(columns)
            if self.place.state is not None:
                data.load_state_dict(self.place.state)
            state, skip = self.place.state, self.place.behind
            for batch in data.iter(batch_size=_BATCH):
                rows = list(zip(*batch.values(), strict=True))
                for behind, values in enumerate(rows[skip:], skip + 1):
                    number = self.place.rows
                    self.place = Place(state, behind, number + 1)
                    yield number, dict(zip(batch, values, strict=True))
                state, skip = data.state_dict(), max(0, skip - len(rows))


@dataclass(frozen=True, slots=True)
class HubData:
    """A data set of the hub at one commit, of which only the card and the list of files are known."""

    name: str  # of the source, for errors
    source: SourceConfig
    builder: "datasets.DatasetBuilder"

    @property
    def own_held_out(self) -> bool:
        """As `Origin` says."""
        return self.source.validation_split is not None

    def content(self) -> Any:
        """The commit, whatever name it was asked for by, and what is taken of it."""
        source = self.source
        return [source.hub, self.builder.hash, source.config, source.split, source.validation_split]

    def tables(self) -> list[list[Table]]:
        """Download it into the cache below HF_HOME, once.

        `datasets` locks its files, so that of several ranks one loads and the others wait.

        Raises:
            DestructError: it is gated; the hub cannot be reached and the cache does not hold it; the cache cannot be
                written.
        """
        splits = [split for split in (self.source.split, self.source.validation_split) if split is not None]
        with _faults_of(self.name, self.source), _quiet():
            self.builder.download_and_prepare()
            data = [self.builder.as_dataset(split) for split in splits]
        origins = [_split_origin(self.source, split) for split in splits]
        return [[HubTable(self.name, self.source, *pair)] for pair in zip(origins, data, strict=True)]

    def stream(self, split: str, place: Place = Place()) -> HubStream:
        """One split from a place on, of which nothing is kept.

        Raises:
            DestructError: the hub cannot be reached, or a file of the split is damaged.
        """
        with _faults_of(self.name, self.source), _quiet():
            data = self.builder.as_streaming_dataset(split)
        return HubStream(self.name, self.source, _split_origin(self.source, split), data, place)

    def check_unchanged(self) -> None:
        """A commit is what it is."""


def open_hub(name: str, source: SourceConfig) -> HubData:
    """A data set of the hub, at the commit that its revision is now; no data file is downloaded.

    Raises:
        DestructError: there is no such data set, revision, configuration or split, or its card says that a column is
            missing or of another type; it is gated, or a loading script; the hub cannot be reached and the cache does
            not hold it; the cache cannot be written.
    """
    with _faults_of(name, source), _quiet():
        builder = _builder_of_the_revision(name, source)
        _check_splits(name, source, [*(builder.info.splits or builder.config.data_files or ())])
    if builder.info.features:
        check_columns(name, source, _split_origin(source, source.split), builder.info.features)
    return HubData(name, source, builder)


def _split_origin(source: SourceConfig, split: str) -> str:
    return f"{hub_origin(source)}, split {split}"


@contextmanager
def _faults_of(name: str, source: SourceConfig, stream: HubStream | None = None) -> Iterator[None]:
    try:
        yield
    except DestructError:
        raise
    except Exception as error:  # two libraries and their network client have no common type
        if stream is not None and is_network_fault(error):
            raise stream_fault(name, source, stream.place.rows, error) from error
        raise _unwritable(name, error) or hub_fault(name, source, error) from error


def _builder(source: SourceConfig, **options: Any) -> "datasets.DatasetBuilder":
    import datasets

    # With the prefix, a folder of that name in the working folder is not taken for it.
    hub = f"hf://datasets/{source.hub}"
    return datasets.load_dataset_builder(hub, revision=source.revision, **_configuration(source), **options)


def _builder_of_the_revision(name: str, source: SourceConfig) -> "datasets.DatasetBuilder":
    """A builder of the revision that the source names.

    Whatever the hub's fault, `datasets` falls back on the newest copy in its cache, of any revision, or complains that
    there is none of that configuration: neither says what is wrong.
    """
    builder = None
    try:
        builder = _builder(source)
        revision, commit = source.revision or "main", _known_commit(source)
        if commit in (None, builder.hash):
            return builder
        fault = DestructError(
            f"source {name!r}: {hub_origin(source)} cannot be reached on the hub, and the newest copy in the cache "
            f"({builder.hash[:12]}) is not of its revision {revision} ({commit[:12]})",
            f"load it once where there is a network, into an HF_HOME of its own, or give data.root a folder with "
            f"{name}/train.*",
            Exit.ENVIRONMENT,
        )
    except ValueError as error:
        if "Couldn't find cache" not in str(error):
            raise
        fault = hub_fault(name, source, error)
    with tempfile.TemporaryDirectory() as empty, suppress(ConnectionError):
        from_the_hub = _builder(source, cache_dir=empty)  # raises what the cache hides
        if builder is not None and builder.hash == from_the_hub.hash:
            return builder  # what was known of the revision was out of date
    raise fault


def _known_commit(source: SourceConfig) -> str | None:
    """The commit that the source's revision was when the hub was last asked; None where that is not known."""
    import huggingface_hub

    revision = source.revision or "main"
    folder = Path(huggingface_hub.constants.HF_HUB_CACHE) / f"datasets--{(source.hub or '').replace('/', '--')}"
    known = folder / "refs" / revision
    commit = known.read_text(encoding="utf-8").strip() if known.is_file() else revision
    return commit if re.fullmatch("[0-9a-f]{40}", commit) else None


def _configuration(source: SourceConfig) -> dict[str, str | None]:
    # The export's configurations are its folders: without a README they have no names.
    exported = source.revision == PARQUET_EXPORT and source.config is not None
    return {"data_dir" if exported else "name": source.config}


def _check_splits(name: str, source: SourceConfig, known: list[str]) -> None:
    """Before the download, which may take an hour."""
    for key in ("split", "validation_split"):
        for part in (getattr(source, key) or "").split("+"):
            split = part.partition("[")[0].strip()
            if known and split and split not in known:
                raise DestructError(
                    f"source {name!r}: {hub_origin(source)} has no split {split!r}; it has {', '.join(known)}",
                    f"set data.sources.{name}.{key} to one of them",
                )


def _unwritable(name: str, error: Exception) -> DestructError | None:
    """The fault of a cache that cannot be written, if that is what an error is about."""
    for cause in (error, error.__cause__):
        place = getattr(cause, "filename", None)
        is_full = getattr(cause, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if is_full or place is not None:
            reason = getattr(cause, "strerror", None) or cause
            return DestructError(
                f"source {name!r}: {place or 'the cache'} cannot be written: {reason}",
                "set HF_HOME to a folder with space, where `datasets` can keep what it has read",
                Exit.ENVIRONMENT,
            )
    return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars, without log lines that would repeat our own error, and without reports to the hub."""
    import datasets
    import huggingface_hub.utils

    libraries: tuple[Any, ...] = (datasets, huggingface_hub.utils)
    before = [(library.are_progress_bars_disabled(), library.logging.get_verbosity()) for library in libraries]
    counts = datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    for library in libraries:
        library.disable_progress_bars()
        library.logging.set_verbosity(library.logging.CRITICAL)
    # Each load is reported to the hub: 5 s for a DNS timeout on a node without network.
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    try:
        yield
    finally:
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = counts
        for library, (disabled, verbosity) in zip(libraries, before, strict=True):
            library.logging.set_verbosity(verbosity)
            if not disabled:
                library.enable_progress_bars()
