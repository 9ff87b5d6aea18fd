"""Warm, the peers: `datasets.interleave_datasets` and torchdata's `MultiNodeWeightedSampler` on the same tokens.

Each gives (B, T) int64 from documents joined and cut every T.  On the disk lie, for each source, rows of tokens that a
peer maps: whole documents, or windows of T cut beforehand.

interleave          iterable data sets of documents, packed as they come: joined and cut here, or by `group_texts`
interleave_bulk     what else is fast: tables read in Arrow by hundreds of rows at once, and windows cut beforehand
torchdata           documents, joined and cut here
torchdata_bulk      windows cut beforehand

The probability of a row is such that all
sources give as many tokens.  The peers have every advantage that was found: tokens two bytes wide, weights that never
change, no positions of tokens in their documents, and streams of `datasets` read in file order; its tables and what
torchdata samples are shuffled, as our windows are.

What they cannot do.  None takes other weights once it has begun.  Rows can be resumed, of a table by counting, of a
stream and of torchdata by a state; tokens that were joined and not yet cut belong to no state.  A table's order is a
list in memory of all rows to come.

Legend: B rows of a batch, T tokens of a window.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.compute
import torch
import torchdata.nodes
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, get_worker_info

from destruct.data.store import TokenStore

SEED, PROCESSES = 11, 2
EPOCHS = 8
"""Of the largest source before a peer has read all and is begun anew."""

datasets.disable_progress_bars()

Start = Callable[[], Iterator[Tensor]]
Cut = Callable[[Iterable[NDArray[Any]]], Iterator[Tensor]]


def peers(stores: dict[str, TokenStore], folder: Path, batch: int, window: int) -> dict[str, dict[str, Start]]:
    """All settings of all peers: peer -> setting -> what begins to give batches.

    Args:
        stores: source -> its tokens.
        folder: empty; for the peers' files.
        batch: B.
        window: T.
    """
    cut = partial(in_batches, batch=batch, window=window)
    ways: dict[str, dict[str, Start]] = {
        f"{peer}{bulk}": {} for peer in ("interleave", "torchdata") for bulk in ("", "_bulk")
    }
    for rows in ("documents", "windows"):
        borders = {
            name: store.starts if rows == "documents" else np.arange(0, store.facts.tokens + 1, window)
            for name, store in stores.items()
        }
        bulk = "" if rows == "documents" else "_bulk"
        weights = _equal_in_tokens(list(borders.values()))
        tables = [_table(store, borders[name], folder / rows / name) for name, store in stores.items()]
        for read, count in itertools.product(_FORMATS, (256, 1024)):
            setting = f"{rows}, {_FORMATS[read] or 'lists'}, {count} at once"
            ways["interleave_bulk"][f"tables of {setting}"] = partial(_from_tables, tables, weights, read, count, cut)
            stream = partial(_from_streams, tables, weights, read, count, cut)
            ways[f"interleave{bulk}"][f"streams of {setting}"] = stream
            if read is _arrow:
                in_processes = partial(_in_processes, stream)
                ways[f"interleave{bulk}"][f"streams of {setting}, {PROCESSES} processes"] = in_processes
        numbered = {name: Rows(store, borders[name]) for name, store in stores.items()}
        for ahead in (0, 4, 16):
            setting = f"{rows}, prefetching {ahead}"
            ways[f"torchdata{bulk}"][setting] = partial(_from_nodes, numbered, weights, ahead, cut)
        if rows == "documents":
            grouped = partial(_grouped, tables, weights, batch, window)
            ways["interleave"] |= {
                "group_texts": grouped,
                f"group_texts, {PROCESSES} processes": partial(_in_processes, grouped),
            }
    return ways


def in_batches(rows: Iterable[NDArray[Any]], batch: int, window: int) -> Iterator[Tensor]:
    """Arrays of tokens (n_i,), joined and cut: (B, T) int64 each, what is left over at the end dropped."""
    size = batch * window
    kept: list[NDArray[Any]] = []
    held = 0
    for row in rows:
        kept.append(row)
        held += len(row)
        if held < size:
            continue
        whole = np.concatenate(kept) if len(kept) > 1 else row
        for first in range(0, held - size + 1, size):
            yield torch.from_numpy(whole[first : first + size].astype(np.int64)).view(batch, window)
        kept = [whole[held - held % size :]]
        held %= size


def _equal_in_tokens(borders: list[NDArray[Any]]) -> list[float]:
    """Probabilities of a row of each source, by which every source gives as many tokens."""
    per_token = np.array([(len(each) - 1) / int(each[-1] - each[0]) for each in borders])
    return (per_token / per_token.sum()).tolist()


def _table(store: TokenStore, borders: NDArray[Any], folder: Path) -> datasets.Dataset:
    """A data set of `input_ids`, written to the disk and mapped."""
    lists = pyarrow.LargeListArray.from_arrays(pyarrow.array(borders), pyarrow.array(store.tokens))
    datasets.Dataset(pyarrow.table({"input_ids": lists})).save_to_disk(str(folder))
    return datasets.load_from_disk(str(folder))


def _arrow(rows: Iterable[Any]) -> Iterator[NDArray[Any]]:
    return (pyarrow.compute.list_flatten(table["input_ids"]).to_numpy() for table in rows)


def _numpy(rows: Iterable[Any]) -> Iterator[NDArray[Any]]:
    return itertools.chain.from_iterable(row["input_ids"] for row in rows)


def _plain(rows: Iterable[Any]) -> Iterator[NDArray[Any]]:
    return (np.array(list(itertools.chain.from_iterable(row["input_ids"]))) for row in rows)


_FORMATS = {_arrow: "arrow", _numpy: "numpy", _plain: None}
_mixed = partial(datasets.interleave_datasets, seed=SEED, stopping_strategy="all_exhausted")


def _from_tables(tables: list[Any], weights: list[float], read: Any, count: int, cut: Cut) -> Iterator[Tensor]:
    epochs = [datasets.concatenate_datasets([table.shuffle(seed=n) for n in range(EPOCHS)]) for table in tables]
    mixed = _mixed(epochs, weights)
    return cut(read(mixed.with_format(_FORMATS[read]).iter(count)))


def _streams(tables: list[Any], form: str | None, part: int, parts: int) -> list[Any]:
    return [table.shard(parts, part).to_iterable_dataset().repeat(EPOCHS).with_format(form) for table in tables]


def _from_streams(
    tables: list[Any], weights: list[float], read: Any, count: int, cut: Cut, part: int = 0, parts: int = 1
) -> Iterator[Tensor]:
    mixed = _mixed(_streams(tables, _FORMATS[read], part, parts), weights)
    return cut(read(mixed.with_format(_FORMATS[read]).iter(count)))


def _grouped(
    tables: list[Any], weights: list[float], batch: int, window: int, part: int = 0, parts: int = 1
) -> Iterator[Tensor]:
    """As the examples of transformers pack a stream."""

    def group_texts(rows: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        joined = list(itertools.chain.from_iterable(rows["input_ids"]))
        return {"input_ids": [joined[n : n + window] for n in range(0, len(joined) // window * window, window)]}

    mixed = _mixed(_streams(tables, None, part, parts), weights).map(group_texts, batched=True)
    return (torch.tensor(rows["input_ids"]) for rows in mixed.iter(batch, drop_last_batch=True))


class _Parts(IterableDataset[Tensor]):
    """A peer's batches in a process of a DataLoader, from its part of each source."""

    def __init__(self, start: Callable[..., Iterator[Tensor]]):
        self._start = start

    def __iter__(self) -> Iterator[Tensor]:
        worker = get_worker_info()
        return self._start(part=worker.id, parts=worker.num_workers)


def _in_processes(start: Callable[..., Iterator[Tensor]]) -> Iterator[Tensor]:
    return iter(DataLoader(_Parts(start), batch_size=None, num_workers=PROCESSES, prefetch_factor=8))


class Rows:
    """Rows of a store's tokens, as a data set that torchdata reads by number.

    Args:
        store: the tokens.
        borders: (n + 1,) where each row begins, and where the last one ends.
    """

    def __init__(self, store: TokenStore, borders: NDArray[Any]):
        self._tokens, self._borders = store.tokens, borders.tolist()

    def __len__(self) -> int:
        return len(self._borders) - 1

    def __getitem__(self, number: int) -> NDArray[Any]:
        return self._tokens[self._borders[number] : self._borders[number + 1]]


class _Cut(torchdata.nodes.BaseNode[Tensor]):
    """Rows of another node, joined and cut; its state is not kept, which costs nothing."""

    def __init__(self, source: torchdata.nodes.BaseNode[Any], cut: Cut):
        super().__init__()
        self._source, self._cut = source, cut

    def reset(self, initial_state: dict[str, Any] | None = None) -> None:
        super().reset(initial_state)
        self._source.reset()
        self._batches = self._cut(self._source)

    def next(self) -> Tensor:
        return next(self._batches)

    def get_state(self) -> dict[str, Any]:
        return {}


def _from_nodes(numbered: dict[str, Rows], weights: list[float], ahead: int, cut: Cut) -> Iterator[Tensor]:
    sampled = {
        name: torchdata.nodes.MapStyleWrapper(rows, RandomSampler(rows, generator=torch.Generator().manual_seed(SEED)))
        for name, rows in numbered.items()
    }
    mixed = torchdata.nodes.MultiNodeWeightedSampler(
        sampled,
        dict(zip(numbered, weights, strict=True)),
        torchdata.nodes.StopCriteria.CYCLE_FOREVER,
        rank=0,
        world_size=1,
        seed=SEED,
    )
    node: torchdata.nodes.BaseNode[Tensor] = _Cut(mixed, cut)
    return iter(torchdata.nodes.Prefetcher(node, ahead, snapshot_frequency=1 << 30) if ahead else node)
