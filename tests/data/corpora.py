"""Small files for the tests of sources, and what is read of them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from destruct.config.data import DataConfig
from destruct.data.formatters import Chat
from destruct.data.sources import Source, open_source, open_sources
from destruct.errors import DestructError

TEXTS = [f"document {number}\nwith “two” lines" for number in range(40)]


def write(path: Path, texts: list[Any], column: str = "text") -> Path:
    """Texts as a file of the kind that the suffix names, beside a column `id`."""
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"id": range(len(texts)), column: texts}), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"id": n, column: text}) + "\n" for n, text in enumerate(texts)))
    else:
        path.write_text("\n".join(texts))
    return path


def opened(
    path: Path,
    seed: int = 0,
    fraction: float = 0.1,
    chat: Chat | None = None,
    memory: Path | None = None,
    **options: Any,
) -> Source:
    """The source `mine` of one path."""
    config = DataConfig.model_validate(
        {"sources": {"mine": {"path": str(path), **options}}, "validation_fraction": fraction}
    )
    return open_source("mine", config.sources["mine"], config, seed, chat, memory)


@dataclass(frozen=True)
class Documents:
    """The texts of one source."""

    name: str
    train: list[str]
    validation: list[str]
    marked_up: bool = False


def collect(source: Source) -> Documents:
    """Read a source whole."""
    sides: tuple[list[str], list[str]] = ([], [])
    for document in source.documents():
        sides[document.held_out].append(document.text)
    return Documents(source.name, *sides, source.marked_up)


def load_sources(config: DataConfig, seed: int, chat: Chat | None = None) -> list[Documents]:
    """Read every source of a config whole."""
    return [collect(source) for source in open_sources(config, seed, chat)]


def load(path: Path, **options: Any) -> Documents:
    """The source `mine` of one path, read."""
    return collect(opened(path, **options))


def texts_of(path: Path, **options: Any) -> list[str]:
    """Both sides of it, in order."""
    return [document.text for document in opened(path, **options).documents()]


def fault(path: Path, **options: Any) -> DestructError:
    """What it is refused with."""
    with pytest.raises(DestructError) as caught:
        load(path, **options)
    assert "'mine'" in caught.value.problem and "\n" not in caught.value.problem + caught.value.remedy
    return caught.value
