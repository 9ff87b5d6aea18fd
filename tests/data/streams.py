"""Streams of made-up documents, read by `datasets` from Parquet files on the disk, and their shards."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from destruct.config.data import DataConfig
from destruct.data.formatters import RowFormat
from destruct.data.loading import HubData
from destruct.data.stream import StreamSource
from destruct.data.stream_pieces import StreamPieces
from destruct.data.stream_shards import StreamShards
from destruct.data.tokenizing import Tokenizer
from destruct.data.windows import Pieces

datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # or each builder is told to the hub, which is not there

KIB = 1 / 1024
"""For `shard_mib`."""
P, R = 3, 5


def texts(seed: int, count: int) -> list[str]:
    """Different texts of 20 to 300 characters, now and then an empty one."""
    rng = np.random.default_rng(seed)
    return [
        "" if number % 17 == 5 else f"{seed} {number} " + "word and " * int(rng.integers(2, 30))
        for number in range(count)
    ]


def write_files(folder: Path, counts: Sequence[int] = (150, 1, 90), prefix: str = "train") -> list[str]:
    """Parquet files of several row groups; returns all texts in order."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number, count in enumerate(counts):
        rows = texts(number + len(prefix), count)
        table = pa.table({"id": range(count), "text": rows})
        pq.write_table(table, folder / f"{prefix}-{number}.parquet", row_group_size=40)
        written += rows
    return written


def stream_of(
    folder: Path, shard_mib: float = 4 * KIB, seed: int = 0, fraction: float = 0.1, **keys: Any
) -> StreamSource:
    """The stream `mine` of the files `train-*` in a folder, and of `validation-*` where there are any."""
    asked = {"hub": "me/mine", "streaming": True, "shard_mib": shard_mib, **keys}
    config = DataConfig.model_validate({"sources": {"mine": asked}, "validation_fraction": fraction})
    source = config.sources["mine"]
    files = {split: sorted(map(str, folder.glob(f"{split}-*"))) for split in ("train", "validation")}
    named = {split: paths for split, paths in files.items() if paths}
    builder = datasets.load_dataset_builder("parquet", data_files=named, cache_dir=str(folder / "cache"))
    return StreamSource(
        "mine", source, config, seed, HubData("mine", source, builder), RowFormat(source, None), f"{folder}"
    )


def unwatched(documents: int, tokens: int) -> None:
    """Who builds need not be watched."""


def shards_of(cache: Path, source: StreamSource, tokenizer: Tokenizer) -> StreamShards:
    """Its shards in a cache."""
    return StreamShards(cache, source, tokenizer, 30)


def pieces_of(cache: Path, source: StreamSource, tokenizer: Tokenizer, **keys: Any) -> StreamPieces:
    """The pieces of its shards."""
    shards = shards_of(cache, source, tokenizer)
    first = Pieces(shards.cached(unwatched).train, P, R, 0, own_prompts=True)
    return StreamPieces(shards, first, **keys)
