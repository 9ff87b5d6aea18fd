"""Two lives of one run, entry by entry: every tensor, moment, cursor, counter and figure by its name, bit for bit.

Equal states may lie in unequal files: pickles of equal objects differ in which words they share, and DCP notes where it
saved.  So the digests of files may tell that two lives are equal; that they differ, only the entries can.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from destruct.checkpoint import manifest
from destruct.checkpoint.shelf import STATE
from destruct.engine.fsdp import SavedTensors
from destruct.engine.zero_files import read_saved

PIECE = 2**22
"""Elements of a tensor that are compared at a time; those of a large model lie on the disk."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing of a life, read when it is asked for."""

    is_tensor: bool  # of at least one element: ZeRO-3 has an empty one where the weight lies in shards
    read: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Difference:
    """One entry that is not the same in both lives."""

    part: str
    name: str  # file or folder, and the place in it
    what: str
    elements: int | None = None  # of a tensor: how many differ
    largest: float | None = None  # of a tensor: their largest absolute difference, None where it is not finite


@dataclass(slots=True)
class Part:
    """How much of one part was compared, and how much of it differs."""

    tensors: int = 0
    others: int = 0  # numbers, words, whole files
    different: int = 0


@dataclass(slots=True)
class Comparison:
    """What was compared so far."""

    parts: dict[str, Part] = field(default_factory=lambda: {name: Part() for name in PARTS})
    found: list[Difference] = field(default_factory=list)

    @property
    def tensors(self) -> int:
        """How many were compared."""
        return sum(part.tensors for part in self.parts.values())

    @property
    def differences(self) -> list[Difference]:
        """By part in the order of `PARTS`, the policy's first."""
        return sorted(self.found, key=lambda difference: PARTS.index(difference.part))

    def checkpoints(self, a: Path, b: Path) -> None:
        """Compare all that two checkpoints hold but the seconds of training.

        Raises:
            manifest.Damaged: one of them is not what was saved; nothing of it is unpickled then.
        """
        files = [manifest.verify(checkpoint)[manifest.FILES] for checkpoint in (a, b)]
        for unit in _units({*files[0], *files[1]}):
            left, right = (_entries(checkpoint, unit) for checkpoint in (a, b))
            same = unit in files[0] and files[0][unit] == files[1].get(unit)
            self._pairs(unit, left, right, same)

    def figures(self, a: Path, b: Path, after: int) -> None:
        """Compare what two files `metrics.jsonl` tell of the updates after so many, but for time and memory."""
        self._pairs(FIGURES, _figures(a, after), _figures(b, after), same=False)

    def _pairs(self, unit: str, left: dict[str, Entry], right: dict[str, Entry], same: bool) -> None:
        """Compare entries by their names.

        Args:
            unit: file or folder that both are of.
            same: it is known to be equal.
        """
        for place in {**left, **right}:
            entry, other = left.get(place), right.get(place)
            is_tensor = any(each is not None and each.is_tensor for each in (entry, other))
            name = _part_of(unit, place, is_tensor)
            part = self.parts[name]
            part.tensors += is_tensor
            part.others += not is_tensor
            if same or (difference := _difference(entry, other)) is None:
                continue
            part.different += 1
            self.found.append(Difference(name, ": ".join(filter(None, (unit, place))), *difference))


def _difference(entry: Entry | None, other: Entry | None) -> tuple[Any, ...] | None:
    """What a `Difference` says after part and name; None where both are equal."""
    if entry is None or other is None:
        return (f"it is in the {'second' if entry is None else 'first'} one alone",)
    a, b = entry.read(), other.read()
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        # Of equal words are equal numbers, NaN and the sign of 0 too.
        return None if repr(a) == repr(b) else (f"{_short(a)} against {_short(b)}",)
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return (f"{tuple(a.shape)} {a.dtype} against {tuple(b.shape)} {b.dtype}",)
    count, largest = _gap(a.detach(), b.detach())  # masters are parameters
    if not count:
        return None
    apart = f"{largest:.3g} at most" if math.isfinite(largest) else "what is not finite"
    what = f"{count:,} of {a.numel():,} elements differ, by {apart}"
    return what, count, largest if math.isfinite(largest) else None


def _gap(a: Tensor, b: Tensor) -> tuple[int, float]:
    """How many elements of two tensors of one shape and dtype differ in a bit, and by how much at most."""
    count, gaps = 0, [torch.zeros((), dtype=torch.float64)]
    for x, y in zip(a.reshape(-1).split(PIECE), b.reshape(-1).split(PIECE), strict=True):
        bits = [piece.contiguous().view(torch.uint8).view(len(piece), piece.element_size()) for piece in (x, y)]
        differ = (bits[0] != bits[1]).any(1)
        if differ.any():
            count += int(differ.sum())
            gaps.append((x[differ].double() - y[differ].double()).abs().max())
    return count, float(torch.stack(gaps).max())


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _units(files: Iterable[str]) -> list[str]:
    """What is read as one: a file, or a folder that DCP wrote."""
    folders = {file.removesuffix("/.metadata") for file in files if file.endswith("/.metadata")}
    return sorted({file.partition("/")[0] if file.partition("/")[0] in folders else file for file in files})


def _entries(checkpoint: Path, unit: str) -> dict[str, Entry]:
    """What a file or a folder of DCP holds, by its place there; nothing where it is missing."""
    path = checkpoint / unit
    if path.is_dir():
        saved = SavedTensors(path)
        return {name: Entry(True, partial(saved.tensor, name)) for name in saved.names}
    if not path.is_file():
        return {}
    if path.suffix == ".safetensors":
        file = safe_open(path, "pt")
        return {name: Entry(True, partial(file.get_tensor, name)) for name in file.keys()}  # noqa: SIM118
    if path.suffix == ".pt":
        return _held(read_saved(path))
    if unit == STATE:
        state = json.loads(path.read_text(encoding="utf-8"))
        del state["seconds"]
        return _held(state)
    return {"": Entry(False, partial(manifest.digest, path))}


def _figures(path: Path, after: int) -> dict[str, Entry]:
    updates: dict[str, dict[str, Any]] = defaultdict(dict)
    for line in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        if line["phase"] == "ppo" and line["step"] >= after:
            figures = {name: x for name, x in line.items() if not name.startswith(("time/", "memory/"))}
            updates[f"update {line['step'] + 1}"] |= figures
    return _held(updates)


def _held(values: Any) -> dict[str, Entry]:
    """Entries of what is in memory already."""

    def entry(leaf: Any) -> Entry:
        return Entry(isinstance(leaf, Tensor) and leaf.numel() > 0, lambda: leaf)

    return {place.removeprefix("."): entry(leaf) for place, leaf in _leaves(values, "")}


def _leaves(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Whatever holds nothing further, by its place."""
    inner = _inside(value)
    if not inner:
        yield place, value
    for key, item in inner.items():
        yield from _leaves(item, place + key)


def _inside(value: Any) -> dict[str, Any]:
    """What a mapping, a sequence, or an object that says no more than its address holds."""
    if isinstance(value, Mapping):
        return {f".{key}": item for key, item in value.items()}
    if isinstance(value, list | tuple):
        return {f"[{index}]": item for index, item in enumerate(value)}
    words: Any = type(value).__repr__
    if words is object.__repr__ and hasattr(value, "__dict__"):
        return {f".{key}": item for key, item in vars(value).items()}
    return {}


def _part_of(unit: str, place: str, is_tensor: bool) -> str:
    folder = unit.partition("/")[0]
    if folder in NETWORKS:
        kinds = (kind for pattern, kind in KINDS.items() if is_tensor and re.search(pattern, place))
        return f"{folder} {next(kinds, SETTINGS)}"
    if unit == STATE:
        return STATES.get(re.split(r"[.\[]", place)[0], COUNTERS)
    return OTHERS.get(folder, FILES)


NETWORKS = ("policy", "value")
KINDS = {
    r"exp_avg|\.step$": "moments",
    r"fp32_flat_groups|fp32_groups|^masters|^weights\.": "master weights",
    r"^module\.": "weights",
}
"""Of a network's tensors: where DeepSpeed, DCP and plain torch have them -> what they are; the first that is found."""
SETTINGS = "engine's state"
STATES = {
    "curriculum": "curriculum",
    "mixture": "mixture cursors",
    "language_mixture": "mixture cursors",
    "value_mixture": "mixture cursors",
}
COUNTERS = "counters"
FIGURES = "metrics.jsonl"
OTHERS = {"frozen": "frozen model", "initial": "initial model", FIGURES: "figures after the resume"}
FILES = "tokenizer, scripts"
PARTS: tuple[str, ...] = (
    *(f"{network} {kind}" for network in NETWORKS for kind in ("weights", "master weights", "moments", SETTINGS)),
    *(OTHERS["frozen"], OTHERS["initial"]),
    *dict.fromkeys(STATES.values()),
    *(COUNTERS, OTHERS[FIGURES], FILES),
)
"""In the order in which they are told."""
