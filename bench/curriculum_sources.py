"""The sources of the curriculum benchmark: windows of bytes, and what each byte costs a model that knows its source.

Every window begins at a beginning, so that the true probability of a byte given those before it in its window is known
in closed form.  What a model pays for a window beyond that is its excess, for that window without sampling error.

Windows are addressed by (seed, source, split, window): a longer draw begins with the windows of a shorter one, and the
bytes of the known sources are the same on every machine, those of the text with every Python of one version.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np

from bench.curriculum_grammar import pcfg_entropy_rate, pcfg_windows
from bench.curriculum_known import (
    MARKOV_SYMBOLS,
    NOISE_SYMBOLS,
    SMALL_SYMBOLS,
    TABLE_SEED,
    Bytes,
    Float64,
    Windows,
    copy_entropy_rate,
    copy_windows,
    easy_entropy_rate,
    easy_windows,
    markov_table,
    markov_windows,
    noise_windows,
)
from destruct.data.embedded import markov_entropy_rate
from destruct.data.stdlib_text import SHORTEST, prose_documents
from destruct.seeding import derive, permuted, uniform

WINDOW = 128  # T of all windows that `make` gives
SPLITS = ("train", "panel", "test")
SMALL_WINDOWS = 312  # 40 kB


@dataclass(frozen=True, slots=True)
class Source:
    """A source, and what is known about it."""

    name: str
    make: Callable[[str, int, int], Windows]
    """(split of `SPLITS`, n, seed) -> n windows of `WINDOW` bytes, or all that there are, where that is less.

    The splits are streams of their own: no held-out window is drawn from what training windows are drawn from.
    """
    entropy_rate: float
    """Nats per byte of an endless stream; nan where nobody knows it.

    The mean cost in a window differs where documents begin: their costly halves come first.  So an excess is taken over
    `Windows.nats`, never over this.
    """
    training_windows: int | None = None
    """All training windows that there are; None where they are endless, and of `text` (Python decides)."""
    known: bool = True
    """Whether `Windows.nats` are the true costs; of `text` nobody knows them."""


@cache
def split_text() -> dict[str, bytes]:
    """English prose, about 0.64 MB with Python 3.11: split -> its documents, whole, end to end.

    A hash of a document says in which split it is: 13/16 of them for training, 2/16 for the panel, 1/16 for the test.
    A paragraph counts once, because a docstring may stand in several classes, and held-out text must not be learnt by
    heart.  What is not ASCII, mostly quotation marks, is left out.
    """
    owners = ("test", "panel", "panel") + ("train",) * 13
    paragraphs: dict[str, list[bytes]] = {split: [] for split in SPLITS}
    seen: set[bytes] = set()
    for document in prose_documents(random.Random(TABLE_SEED), lambda: 2 * SHORTEST):
        fresh = [part for part in document.encode("ascii", "ignore").split(b"\n\n") if part not in seen]
        seen.update(fresh)
        paragraphs[owners[derive(TABLE_SEED, document) % len(owners)]] += fresh
    return {split: b"\n\n".join(parts) for split, parts in paragraphs.items()}


def _make_known(
    name: str, draw: Callable[[Float64], Windows], limit: int | None, split: str, n: int, seed: int
) -> Windows:
    if limit is not None and split == "train":
        n = min(n, limit)
    return draw(uniform(_stream(name, split, seed), 0, np.arange(n), np.arange(WINDOW)))


def _make_text(split: str, n: int, seed: int) -> Windows:
    """n of the split's windows, in an order that the seed gives; a window begins anywhere in a document."""
    key, text = _stream("text", split, seed), np.frombuffer(split_text()[split], dtype=np.uint8)
    windows = text[: len(text) // WINDOW * WINDOW].reshape(-1, WINDOW)
    tokens = windows[permuted(np.arange(min(n, len(windows))), len(windows), key)]
    return Windows(tokens, np.zeros(tokens.shape))


def _stream(name: str, split: str, seed: int) -> int:
    """Key of a stream of numbers.  Raises ValueError where there is no such split."""
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}; there are {', '.join(SPLITS)}")
    return derive(seed, "curriculum source", name, split)


def _known(name: str, draw: Callable[[Float64], Windows], rate: float, limit: int | None = None) -> Source:
    return Source(name, partial(_make_known, name, draw, limit), rate, limit)


def _chain(name: str, table: str, symbols: Bytes, limit: int | None = None) -> Source:
    chain = markov_table(table)
    return _known(name, partial(markov_windows, chain, symbols), markov_entropy_rate(chain), limit)


_ALL = (
    _known("easy", easy_windows, easy_entropy_rate()),
    _chain("markov", "markov", MARKOV_SYMBOLS),
    _known("pcfg", pcfg_windows, pcfg_entropy_rate()),
    _known("copy", copy_windows, copy_entropy_rate()),
    _known("noise", noise_windows, float(np.log(len(NOISE_SYMBOLS)))),
    _chain("duplicate", "markov", MARKOV_SYMBOLS),
    _chain("small", "small", SMALL_SYMBOLS, SMALL_WINDOWS),
    Source("text", _make_text, float("nan"), known=False),
)
SOURCES = {source.name: source for source in _ALL}
"""Name -> source."""

MIXTURES = {"waste": tuple(SOURCES), "clean": ("markov", "pcfg", "copy", "text")}
"""Name -> its sources: with waste, and without."""
