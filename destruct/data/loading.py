"""The one adapter to Hugging Face `datasets`: local files, and data sets of the hub, as tables of rows."""

import errno
import glob
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from destruct.config.data import SourceConfig
from destruct.data.hub_faults import PARQUET_EXPORT, first_line, hub_fault, hub_origin
from destruct.errors import DestructError
from destruct.exits import Exit

if TYPE_CHECKING:
    import datasets

_BATCH = 64  # rows decoded at once: a row of a corpus of books takes 400 kB


@dataclass(frozen=True, slots=True)
class Table:
    """Rows on the disk, read when they are asked for."""

    origin: str
    """What errors call it: the path, or the id on the hub with configuration and split."""
    data: "datasets.Dataset | None"
    """None where there is no row."""

    def rows(self, columns: list[str] | None) -> Iterator[dict[str, Any]]:
        """Rows in their order with these columns, or with all of them (None); what is not asked for is not read."""
        if self.data is None:
            return
        table = self.data if columns is None else self.data.select_columns(columns)
        for batch in table.iter(batch_size=_BATCH):
            for values in zip(*batch.values(), strict=True):
                yield dict(zip(batch, values, strict=True))


def read_file(name: str, file: Path) -> Table:
    """A local file, by the builder that its suffix names in `LOADERS`.

    Raises:
        DestructError: it cannot be read, or the cache of `datasets` cannot be written.
    """
    import datasets  # a second of imports that embedded sources do not need
    import pyarrow

    try:
        if _is_blank(file):
            return Table(str(file), None)
        with _quiet():
            # Escaped, because `data_files` are patterns and a file may be called "notes [1].txt".
            pattern = glob.escape(str(file.resolve()))
            data = datasets.load_dataset(LOADERS[file.suffix], data_files={"train": pattern}, split="train")
    except (datasets.exceptions.DatasetsError, pyarrow.ArrowException, OSError, ValueError) as error:
        unwritable = _unwritable(name, error, file)
        if unwritable is not None:
            raise unwritable from error
        raise DestructError(
            f"source {name!r}: {file} cannot be read as {LOADERS[file.suffix]}: {first_line(error.__cause__ or error)}",
            "fix the file, or give it the suffix of what it is",
        ) from error
    return Table(str(file), data)


def read_hub(name: str, source: SourceConfig) -> list[Table]:
    """The split to train on and, where the source names one, the split to hold out, of a data set of the hub.

    It is downloaded into the cache below HF_HOME, once: `datasets` locks its files, so that of several ranks one loads
    and the others wait.

    Raises:
        DestructError: there is no such data set, revision, configuration or split; it is gated, or a loading script;
            the hub cannot be reached and the cache does not hold it; the cache cannot be written.
    """
    try:
        with _quiet():
            builder = _builder_of_the_revision(name, source)
            _check_splits(name, source, [*(builder.info.splits or builder.config.data_files or ())])
            builder.download_and_prepare()
            splits = [split for split in (source.split, source.validation_split) if split is not None]
            return [Table(f"{hub_origin(source)}, split {split}", builder.as_dataset(split)) for split in splits]
    except DestructError:
        raise
    except Exception as error:  # two libraries and their network client have no common type
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


def _unwritable(name: str, error: Exception, reading: Path | None = None) -> DestructError | None:
    """The fault of a cache that cannot be written, if that is what an error is about."""
    for cause in (error, error.__cause__):
        place = getattr(cause, "filename", None)
        is_full = getattr(cause, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if is_full or (place is not None and (reading is None or Path(place).resolve() != reading.resolve())):
            reason = getattr(cause, "strerror", None) or cause
            return DestructError(
                f"source {name!r}: {place or 'the cache'} cannot be written: {reason}",
                "set HF_HOME to a folder with space, where `datasets` can keep what it has read",
                Exit.ENVIRONMENT,
            )
    return None


def _is_blank(file: Path) -> bool:
    """Whether a readable file has no row: `datasets` meets that with errors that name no file."""
    import pyarrow.parquet

    if file.suffix == ".parquet":
        return pyarrow.parquet.read_metadata(file).num_rows == 0
    with file.open("rb") as stream:
        return not any(line.strip() for line in stream)


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
    # Each load, of local files too, is reported to the hub: 5 s for a DNS timeout on a node without network.
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    try:
        yield
    finally:
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = counts
        for library, (disabled, verbosity) in zip(libraries, before, strict=True):
            library.logging.set_verbosity(verbosity)
            if not disabled:
                library.enable_progress_bars()


LOADERS = {".parquet": "parquet", ".jsonl": "json", ".txt": "text"}
"""Suffix of a local file -> the builder of Hugging Face `datasets` that reads it."""
