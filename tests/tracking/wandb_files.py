"""What W&B's package writes offline, read without it but for the messages' own classes: a log in LevelDB's format."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

BLOCK, HEAD = 32768, struct.Struct("<IHB")  # a part: checksum, length, and whether it is whole, first, middle or last
WHOLE, FIRST, LAST = 1, 2, 4


def records(path: Path) -> Iterator[Record]:
    """Every record of a `.wandb` file that is whole."""
    data, place, parts = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while place + HEAD.size <= len(data):
        if (left := BLOCK - place % BLOCK) < HEAD.size:
            place += left
            continue
        _, length, kind = HEAD.unpack_from(data, place)
        part = data[place + HEAD.size : place + HEAD.size + length]
        parts = part if kind in (WHOLE, FIRST) else parts + part
        place += HEAD.size + length
        if kind in (WHOLE, LAST):
            yield Record.FromString(parts)


def files(folder: Path) -> list[Path]:
    """Those of each life of a run, in their order."""
    return sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime_ns)


def rows(folder: Path) -> list[dict[str, Any]]:
    """The history of all lives; what has parts is named by them, with slashes."""
    found = []
    for path in files(folder):
        for record in records(path):
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                found.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return found


def curves(folder: Path, axis: str) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of every name that is drawn over an axis."""
    there = [row for row in rows(folder) if axis in row]
    names = {name: None for row in there for name in row if not name.startswith("_") and name != axis}
    return {name: [(row[axis], row[name]) for row in there if name in row] for name in names}


def runs(folder: Path) -> list[Any]:
    """How each life introduced itself."""
    found = [record.run for path in files(folder) for record in records(path) if record.HasField("run")]
    return [run for run in found if run.run_id]
