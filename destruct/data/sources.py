"""From a source of the config to its documents: embedded text or local files, split into training and held-out.

Every fault of the data is found here, before any model exists.
"""

import difflib
import glob
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from destruct.config.data import DataConfig, SourceConfig
from destruct.data.embedded import EMBEDDED
from destruct.errors import DestructError
from destruct.exits import Exit
from destruct.seeding import derive

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True, slots=True)
class Documents:
    """The texts of one source; no text is on both sides unless the user's own validation file repeats one."""

    name: str
    train: list[str]
    """At least one non-empty document, in file order."""
    validation: list[str]
    """Held out: at least one non-empty document, in file order."""


def load_sources(config: DataConfig, seed: int, render_chat=None) -> list[Documents]:
    """Load every source of the config, in its order; raises as `load_source` does."""
    return [load_source(name, source, config, seed) for name, source in config.sources.items()]


def load_source(name: str, source: SourceConfig, config: DataConfig, seed: int) -> Documents:
    """Read one source and hold some of it out.

    A folder with a validation file is split as it says.  Elsewhere a document is held out where
    `derive(seed, "held out", text) < validation_fraction * 2**64`: a pure function of the text, so that repeated rows,
    and rows that two sources share, lie on one side.

    Args:
        name: key of the source in `data.sources`.
        source: its section.
        config: the whole data section (held-out share, size of embedded texts).
        seed: the run's seed; it decides the embedded text and the split.

    Raises:
        DestructError: a path or column is missing, a column is not text, a file cannot be read, there is no non-empty
            document, or not one to hold out.
    """
    if source.embedded is not None:
        texts = EMBEDDED[source.embedded](config.embedded_bytes, derive(seed, "embedded", name))
        return _split(name, texts[: source.max_documents], config.validation_fraction, seed)
    train_file, validation_file = _files(name, source)
    train = _read(name, source, train_file)
    if validation_file is None:
        return _split(name, train, config.validation_fraction, seed)
    return Documents(name, train, _read(name, source, validation_file))


def _split(name: str, texts: list[str], fraction: float, seed: int) -> Documents:
    keys = {text: derive(seed, "held out", text) for text in texts}
    if len(keys) < 2:
        raise DestructError(
            f"source {name!r} has {len(keys)} different document(s); it takes 2, one of them to hold out",
            "give it more documents, or a folder with train.* and validation.*",
        )
    # However small the source, the lowest key is held out and the highest is trained on.
    lowest, highest = min(keys.values()), max(keys.values())
    threshold = min(max(int(fraction * 2**64), lowest + 1), highest)
    return Documents(
        name,
        train=[text for text in texts if keys[text] >= threshold],
        validation=[text for text in texts if keys[text] < threshold],
    )


def _files(name: str, source: SourceConfig) -> tuple[Path, Path | None]:
    """The training file and, where a folder has one, the validation file."""
    path = Path(source.path or "").expanduser()
    if path.is_dir():
        train, validation = _file_in(name, path, "train"), _file_in(name, path, "validation")
        if train is None:
            held = ", ".join(sorted(file.name for file in path.iterdir())[:8]) or "nothing"
            raise DestructError(
                f"source {name!r}: the folder {path} has no train file; it holds {held}",
                f"name one of its files train ({', '.join(LOADERS)}), or let path name the file itself",
            )
        return train, validation
    if not path.is_file():
        raise DestructError(
            f"source {name!r}: {path} does not exist (looked up from {Path.cwd()})",
            f"set data.sources.{name}.path to a file or folder",
        )
    if path.suffix not in LOADERS:
        raise DestructError(
            f"source {name!r}: {path} ends in {path.suffix or 'nothing'!r}; known are {', '.join(LOADERS)}",
            "convert or rename the file",
        )
    return path, None


def _file_in(name: str, folder: Path, split: str) -> Path | None:
    found = [file for suffix in LOADERS if (file := folder / f"{split}{suffix}").is_file()]
    if len(found) > 1:
        raise DestructError(
            f"source {name!r}: {folder} holds {' and '.join(file.name for file in found)}",
            "keep one of them, or let path name the file itself",
        )
    return found[0] if found else None


def _read(name: str, source: SourceConfig, file: Path) -> list[str]:
    """The non-empty texts of a file, in its order."""
    table = _load(name, file)
    texts: list[str] = []
    if table is not None:
        _check_column(name, source.text_field, file, table.features)
        column = (text for text in table[source.text_field] if text and not text.isspace())
        texts = list(itertools.islice(column, source.max_documents))
    if not texts:
        raise DestructError(
            f"source {name!r}: {file} holds no non-empty document",
            f"give data.sources.{name} a file with text in column {source.text_field!r}, or remove the source",
        )
    return texts


def _load(name: str, file: Path) -> "datasets.Dataset | None":
    """The file as `datasets` reads it; None where it has no row."""
    import datasets  # a second of imports that embedded sources do not need
    import pyarrow

    try:
        if _is_blank(file):
            return None
        with _quiet(datasets):
            # Escaped, because `data_files` are patterns and a file may be called "notes [1].txt".
            pattern = glob.escape(str(file.resolve()))
            return datasets.load_dataset(LOADERS[file.suffix], data_files={"train": pattern}, split="train")
    except (datasets.exceptions.DatasetsError, pyarrow.ArrowException, OSError, ValueError) as error:
        elsewhere = getattr(error, "filename", None)
        if elsewhere is not None and Path(elsewhere) != file:
            raise DestructError(
                f"source {name!r}: {elsewhere} cannot be written: {error.strerror}",  # type: ignore[union-attr]
                "set HF_HOME to a folder with space, where `datasets` can keep what it has read",
                Exit.ENVIRONMENT,
            ) from error
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise DestructError(
            f"source {name!r}: {file} cannot be read as {LOADERS[file.suffix]}: {reason}",
            "fix the file, or give it the suffix of what it is",
        ) from error


def _is_blank(file: Path) -> bool:
    """Whether a readable file has no row: `datasets` meets that with errors that name no file."""
    import pyarrow.parquet

    if file.suffix == ".parquet":
        return pyarrow.parquet.read_metadata(file).num_rows == 0
    with file.open("rb") as stream:
        return not any(line.strip() for line in stream)


def _check_column(name: str, field: str, file: Path, features: dict[str, Any]) -> None:
    if field not in features:
        by_nearness = sorted(features, key=lambda column: -difflib.SequenceMatcher(None, field, column).ratio())
        raise DestructError(
            f"source {name!r}: {file} has no column {field!r}; it has {', '.join(map(repr, by_nearness))}",
            _name_a_column(name, field, features),
        )
    if not _is_text(features[field]):
        raise DestructError(
            f"source {name!r}: column {field!r} of {file} is {features[field]}, not text",
            _name_a_column(name, field, features),
        )


def _is_text(kind: Any) -> bool:
    # A column of nulls has the type null; it is text of which there is none.
    return getattr(kind, "dtype", None) in TEXT_TYPES


def _name_a_column(name: str, field: str, features: dict[str, Any]) -> str:
    texts = [column for column, kind in features.items() if _is_text(kind)]
    nearest = max(texts, key=lambda column: difflib.SequenceMatcher(None, field, column).ratio(), default=None)
    if nearest is None:
        return "no column of the file is text; write one with the text of each row"
    return f"set data.sources.{name}.text_field: {nearest}"


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Without progress bars, without log lines that would repeat our own error, and without the network."""
    bars, verbosity = not datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    counts = datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    # Each load, of local files too, is reported to the hub: 5 s for a DNS timeout on a node without network.
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    try:
        yield
    finally:
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = counts
        datasets.logging.set_verbosity(verbosity)
        if bars:
            datasets.enable_progress_bars()


TEXT_TYPES = ("string", "large_string", "null")

LOADERS = {".parquet": "parquet", ".jsonl": "json", ".txt": "text"}
"""Suffix of a local file -> the builder of Hugging Face `datasets` that reads it."""
