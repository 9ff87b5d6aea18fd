"""Local files as tables of rows: Parquet, JSON lines and plain text, read as they are, in constant memory."""

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from destruct.data.columns import features_of
from destruct.data.fingerprints import FileDigests, stat_of, unreadable
from destruct.data.hub_faults import first_line
from destruct.data.tables import Features, Row, Table
from destruct.errors import DestructError
from destruct.exits import Exit

_BATCH = 64  # rows decoded at once: a row of a corpus of books takes 400 kB
_PAGES = 1 << 20  # bytes of a Parquet column read at once; without it a whole column of a row group lies in memory
_BOM = b"\xef\xbb\xbf"
_DECODER = json.JSONDecoder(strict=False)  # a tab or a NUL that nobody escaped is text all the same


@dataclass(frozen=True, slots=True)
class LocalFiles:
    """The files of one source."""

    parts: list[list["ParquetTable | LineTable"]]
    """Those to train on and, where a folder has them, those held out."""
    digests: FileDigests

    @property
    def own_held_out(self) -> bool:
        """As `Origin` says."""
        return len(self.parts) > 1

    def content(self) -> Any:
        """Suffix and digest of each file: where it lies and what it is called decides no text."""
        return [[[_suffix(table.file), self.digests(table.name, table.file)] for table in part] for part in self.parts]

    def tables(self) -> list[list[Table]]:
        """As `Origin` says."""
        return [list(part) for part in self.parts]

    def check_unchanged(self) -> None:
        """As `Origin` says."""
        for table in (table for part in self.parts for table in part):
            with _faults_of(table.name, table.file):
                is_changed = stat_of(table.file) != table.stat
            if is_changed:
                raise DestructError(
                    f"source {table.name!r}: {table.file} changed while it was read",
                    "start again when nothing writes to it any more",
                    Exit.ENVIRONMENT,
                )


@dataclass(frozen=True, slots=True)
class ParquetTable:
    """One Parquet file."""

    name: str  # of the source, for errors
    file: Path
    features: Features
    stat: list[int]  # when it was opened
    unit: str = "row"

    @property
    def origin(self) -> str:
        """As `Table` says."""
        return str(self.file)

    def rows(self, columns: list[str] | None) -> Iterator[tuple[int, Row | DestructError]]:
        """As `Table` says; a damaged page is a fault of the file, never of a row.

        Damage of a few bytes is sure to be seen only where the writer gave each page its checksum.
        """
        import pyarrow.parquet

        number = 0
        options = {"pre_buffer": False, "buffer_size": _PAGES, "page_checksum_verification": True}
        with _faults_of(self.name, self.file), pyarrow.parquet.ParquetFile(self.file, **options) as table:
            for batch in table.iter_batches(_BATCH, columns=columns, use_threads=False):
                for row in _decoded(batch):
                    yield number, row
                    number += 1


@dataclass(frozen=True, slots=True)
class LineTable:
    """One file with a row on each line; lines end with LF or CRLF, and other breaks are part of them."""

    name: str  # of the source, for errors
    file: Path
    parse: Callable[[str], Row | None]
    """A line's row, None where it has none; raises DestructError."""
    features: Features | None
    stat: list[int]  # when it was opened
    unit: str = "line"

    @property
    def origin(self) -> str:
        """As `Table` says."""
        return str(self.file)

    def rows(self, columns: list[str] | None) -> Iterator[tuple[int, Row | DestructError]]:
        """As `Table` says."""
        with _faults_of(self.name, self.file), _lines(self.file) as lines:
            for number, line in enumerate(lines, start=1):
                row = self._row(line.removeprefix(_BOM) if number == 1 else line)
                if row is not None:
                    yield number, row

    def _row(self, line: bytes) -> Row | DestructError | None:
        try:
            return self.parse(line.removesuffix(b"\n").removesuffix(b"\r").decode())
        except UnicodeDecodeError as error:
            return DestructError(f"not UTF-8: byte 0x{line[error.start]:02x} at byte {error.start + 1}", "fix it")
        except DestructError as error:
            return error


def open_files(name: str, path: Path, remedy: str, digests: FileDigests) -> LocalFiles:
    """The training files and, where a folder has them, the validation files; Parquet's footers are read, no more.

    Args:
        name: key of the source in `data.sources`.
        path: a file, or a folder with `train.*` or `train-*.*` and perhaps `validation.*` or `validation-*.*`.
        remedy: of a path where nothing is.
        digests: of files' contents.

    Raises:
        DestructError: there is no such file or folder, it cannot be read, its names leave open what is meant, or a
            file of a numbered set is missing.
    """
    with _faults_of(name, path):
        if path.is_dir():
            parts = [_files_in(name, path, split) for split in ("train", "validation")]
        elif path.is_file():
            parts = [[path]]
        else:
            raise DestructError(f"source {name!r}: {path} does not exist (looked up from {Path.cwd()})", remedy)
        held = ", ".join(sorted(file.name for file in path.iterdir())[:8]) if path.is_dir() else ""
    if not parts[0]:
        raise DestructError(
            f"source {name!r}: the folder {path} has no train file; it holds {held or 'nothing'}",
            f"name one of its files train ({', '.join(OPENERS)}), or let path name the file itself",
        )
    return LocalFiles([[_opened(name, file) for file in part] for part in parts if part], digests)


def _opened(name: str, file: Path) -> ParquetTable | LineTable:
    suffix = _suffix(file)
    if suffix is None:
        raise DestructError(
            f"source {name!r}: {file} ends in {file.suffix or 'nothing'!r}; known are {', '.join(OPENERS)}",
            "convert or rename the file",
        )
    with _faults_of(name, file):
        return OPENERS[suffix](name, file)


def _suffix(file: Path) -> str | None:
    return next((suffix for suffix in OPENERS if file.name.endswith(suffix)), None)


def _files_in(name: str, folder: Path, split: str) -> list[Path]:
    """`train.parquet`, or the shards `train-*.parquet` in the order of their names: one of the two, of one suffix."""
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir()):
        suffix = _suffix(file)
        stem = file.name.removesuffix(suffix or "")
        if suffix is not None and (stem == split or stem.startswith(f"{split}-")) and file.is_file():
            found.setdefault(f"{split}{'' if stem == split else '-*'}{suffix}", []).append(file)
    if len(found) > 1:
        raise DestructError(
            f"source {name!r}: {folder} holds {' and '.join(sorted(found))}",
            "keep one of them, or let path name the file itself",
        )
    files = next(iter(found.values()), [])
    _check_count(name, folder, files)
    return files


def _check_count(name: str, folder: Path, files: list[Path]) -> None:
    """A shard that was not copied would otherwise be missed by nobody."""
    numbered = [match for file in files if (match := re.search(r"-(\d+)-of-(\d+)\.", file.name))]
    numbers, totals = ({int(match[group]) for match in numbered} for group in (1, 2))
    if numbered and not (len(numbers) == len(files) and totals == {len(files)}):
        of = " and ".join(map(str, sorted(totals)))
        raise DestructError(
            f"source {name!r}: {folder} holds {len(files)} {files[0].name.partition('-')[0]} files, numbered of {of}",
            "copy those that are missing, or remove those that do not belong to them",
        )


@contextmanager
def _faults_of(name: str, file: Path) -> Iterator[None]:
    """What reading raises as an error that names the file; one that has a number is the system's."""
    import pyarrow

    try:
        yield
    except DestructError:
        raise
    except (pyarrow.ArrowException, OSError, EOFError, zlib.error, UnicodeDecodeError) as error:  # of a column's name
        if getattr(error, "errno", None) is not None:
            raise unreadable(name, file, error) from error
        raise DestructError(
            f"source {name!r}: {file} cannot be read as {(_suffix(file) or '').lstrip('.')}: {first_line(error)}",
            "fix the file, or give it the suffix of what it is",
        ) from error


def _lines(file: Path) -> IO[bytes]:
    return gzip.open(file) if file.suffix == ".gz" else file.open("rb")  # type: ignore[return-value]


def _decoded(batch: Any) -> Iterator[Row | DestructError]:
    try:
        yield from batch.to_pylist()
        return
    except UnicodeDecodeError:  # nothing was given yet; Parquet's writers need not look at what they call a string
        pass
    for number in range(batch.num_rows):
        try:
            yield batch.slice(number, 1).to_pylist()[0]
        except UnicodeDecodeError as error:
            yield DestructError(f"not UTF-8: byte 0x{error.object[error.start]:02x} in a text", "fix it")


def _json_row(line: str) -> Row | None:
    if not line or line.isspace():
        return None
    try:
        row = _DECODER.decode(line)
    except json.JSONDecodeError as error:
        raise DestructError(f"not JSON: {error.msg} at character {error.pos + 1} of {len(line)}", "fix it") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets thousands deep
        raise DestructError(f"not readable as JSON: {first_line(error)}", "fix it") from error
    if not isinstance(row, dict):
        raise DestructError(f"a JSON value of type {type(row).__name__}, not an object", "write one object a line")
    return row


def _text_row(line: str) -> Row:
    return {"text": line}


def _open_parquet(name: str, file: Path) -> ParquetTable:
    import pyarrow.parquet

    stat = stat_of(file)
    return ParquetTable(name, file, features_of(pyarrow.parquet.read_schema(file)), stat)


def _open_lines(parse: Callable[[str], Row | None], name: str, file: Path) -> LineTable:
    import pyarrow

    stat = stat_of(file)
    with _lines(file) as stream:
        stream.read(1)  # permissions and gzip's header
    schema = pyarrow.schema([("text", pyarrow.string())])
    return LineTable(name, file, parse, features_of(schema) if parse is _text_row else None, stat)


_JSON, _TEXT = partial(_open_lines, _json_row), partial(_open_lines, _text_row)

OPENERS: dict[str, Callable[[str, Path], ParquetTable | LineTable]] = {
    ".parquet": _open_parquet,
    ".jsonl": _JSON,
    ".jsonl.gz": _JSON,
    ".txt": _TEXT,
    ".txt.gz": _TEXT,
}
"""Suffix of a local file -> what opens it, by the source's name and the path."""
