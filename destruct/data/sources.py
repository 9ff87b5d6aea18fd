"""From a source of the config to its documents: embedded text, files or the hub, split into training and held-out.

Every fault of the data is found here, before any model exists.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from destruct.config.data import DataConfig, SourceConfig
from destruct.data.columns import check_columns
from destruct.data.embedded import EMBEDDED
from destruct.data.formatters import RenderChat, RowFormat
from destruct.data.loading import LOADERS, Table, read_file, read_hub
from destruct.errors import DestructError
from destruct.seeding import derive


@dataclass(frozen=True, slots=True)
class Documents:
    """The texts of one source; no text is on both sides unless the user's own validation file repeats one."""

    name: str
    train: list[str]
    """At least one non-empty document, in file order."""
    validation: list[str]
    """Held out: at least one non-empty document, in file order."""
    marked_up: bool = False
    """The texts hold the tokenizer's special tokens as such (`format: chat`), not as characters that look like them."""


def load_sources(config: DataConfig, seed: int, render_chat: RenderChat | None = None) -> list[Documents]:
    """Load every source of the config, in its order; arguments and errors are those of `load_source`."""
    return [load_source(name, source, config, seed, render_chat) for name, source in config.sources.items()]


def load_source(
    name: str, source: SourceConfig, config: DataConfig, seed: int, render_chat: RenderChat | None = None
) -> Documents:
    """Read one source and hold some of it out.

    A folder with a validation file, and a hub source with a validation split, are split as they say.  Elsewhere a
    document is held out where `derive(seed, "held out", text) < validation_fraction * 2**64`: a pure function of the
    text, so that repeated rows, and rows that two sources share, lie on one side.

    Args:
        name: key of the source in `data.sources`.
        source: its section.
        config: the whole data section (root, held-out share, size of embedded texts).
        seed: the run's seed; it decides the embedded text and the split.
        render_chat: messages -> text, for `format: chat`; None where the tokenizer has no chat template.

    Raises:
        DestructError: a path, data set or column is missing, a column is of another type than the format reads, a row
            cannot be made a text, a file cannot be read, there is no non-empty document, or not one to hold out.
    """
    if source.embedded is not None:
        texts = EMBEDDED[source.embedded](config.embedded_bytes, derive(seed, "embedded", name))
        return _split(name, texts[: source.max_documents], config.validation_fraction, seed)
    try:
        row_format = RowFormat(source, render_chat)
    except DestructError as error:
        raise DestructError(f"source {name!r}: {error.problem}", error.remedy, error.exit_code) from error
    train, *held_out = (_read(name, source, row_format, table) for table in _tables(name, source, config))
    marked_up = source.format == "chat"
    if held_out:
        return Documents(name, train, held_out[0], marked_up)
    return _split(name, train, config.validation_fraction, seed, marked_up)


def _split(name: str, texts: list[str], fraction: float, seed: int, marked_up: bool = False) -> Documents:
    keys = {text: derive(seed, "held out", text) for text in texts}
    if len(keys) < 2:
        raise DestructError(
            f"source {name!r} has {len(keys)} different document(s); it takes 2, one of them to hold out",
            "give it more documents, or a held-out part of its own (validation.*, validation_split)",
        )
    # However small the source, the lowest key is held out and the highest is trained on.
    lowest, highest = min(keys.values()), max(keys.values())
    threshold = min(max(int(fraction * 2**64), lowest + 1), highest)
    return Documents(
        name,
        train=[text for text in texts if keys[text] >= threshold],
        validation=[text for text in texts if keys[text] < threshold],
        marked_up=marked_up,
    )


def _tables(name: str, source: SourceConfig, config: DataConfig) -> list[Table]:
    """The table to train on and, where the source has one of its own, the table to hold out."""
    root = None if config.root is None else Path(config.root).expanduser()
    if source.path is not None:
        path = Path(source.path).expanduser()
        return _read_files(
            name, path if root is None else root / path, f"set data.sources.{name}.path to a file or folder"
        )
    if root is None:
        return read_hub(name, source)
    return _read_files(name, root / name, f"put train.* of {source.hub} there, or leave data.root out to download it")


def _read_files(name: str, path: Path, remedy: str) -> list[Table]:
    """The training file and, where a folder has one, the validation file.

    Args:
        remedy: of a path where nothing is.
    """
    if path.is_dir():
        train, validation = _file_in(name, path, "train"), _file_in(name, path, "validation")
        if train is None:
            held = ", ".join(sorted(file.name for file in path.iterdir())[:8]) or "nothing"
            raise DestructError(
                f"source {name!r}: the folder {path} has no train file; it holds {held}",
                f"name one of its files train ({', '.join(LOADERS)}), or let path name the file itself",
            )
        return [read_file(name, file) for file in (train, validation) if file is not None]
    if not path.is_file():
        raise DestructError(f"source {name!r}: {path} does not exist (looked up from {Path.cwd()})", remedy)
    if path.suffix not in LOADERS:
        raise DestructError(
            f"source {name!r}: {path} ends in {path.suffix or 'nothing'!r}; known are {', '.join(LOADERS)}",
            "convert or rename the file",
        )
    return [read_file(name, path)]


def _file_in(name: str, folder: Path, split: str) -> Path | None:
    found = [file for suffix in LOADERS if (file := folder / f"{split}{suffix}").is_file()]
    if len(found) > 1:
        raise DestructError(
            f"source {name!r}: {folder} holds {' and '.join(file.name for file in found)}",
            "keep one of them, or let path name the file itself",
        )
    return found[0] if found else None


def _read(name: str, source: SourceConfig, row_format: RowFormat, table: Table) -> list[str]:
    """The non-empty texts of a table, in its order."""
    if table.data is not None:
        check_columns(name, source, table.origin, table.data.features)
    texts = list(itertools.islice(_texts(name, row_format, table), source.max_documents))
    if not texts:
        columns = f" with text in column {source.columns[0]!r}" if source.format == "text" and source.columns else ""
        raise DestructError(
            f"source {name!r}: {table.origin} holds no non-empty document",
            f"give data.sources.{name} a table{columns}, or remove the source",
        )
    return texts


def _texts(name: str, row_format: RowFormat, table: Table) -> Iterator[str]:
    for number, row in enumerate(table.rows(row_format.columns)):
        try:
            text = row_format(row)
        except DestructError as error:
            raise DestructError(
                f"source {name!r}, row {number} of {table.origin}: {error.problem}", error.remedy, error.exit_code
            ) from error
        if text and not text.isspace():
            yield text
