"""The token cache: each source is tokenized once, by one process, and every run and rank that wants the same maps it.

A cache is a folder named by the source and a key of all that decides its tokens: the source's fingerprint, the
tokenizer, and the code that makes the one of the other.  It appears under that name when it is whole and on the disk.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray

from destruct.data.documents import Document, Tally
from destruct.data.made_once import MadeOnce
from destruct.data.sources import AnySource, Source
from destruct.data.store import ANYWHERE, StoreFacts, StoreWriter, TokenStore
from destruct.data.tokenizing import Tokenizer
from destruct.durable import sync

TALLY = "tally.txt"
_BATCH_CHARACTERS = 1 << 20  # of documents tokenized at once
_BATCH_DOCUMENTS = 4096
_CODE = ("store.py", "token_cache.py", "tokenizing.py")

Encoded = tuple[list[NDArray[np.int32]], list[int], NDArray[np.bool_]]
Watch = Callable[[int, int], None]
"""Told of a build as it goes: documents and tokens written so far."""


@dataclass(frozen=True, slots=True)
class CachedSource:
    """A source's documents as tokens."""

    name: str
    train: TokenStore
    held_out: TokenStore
    tally: str
    """What was left out while the source was read, for the screen."""

    @property
    def digest(self) -> str:
        """Of all tokens."""
        return f"{self.train.facts.digest} {self.held_out.facts.digest}"


@dataclass(frozen=True, slots=True)
class TokenCache:
    """A folder of caches.

    Args:
        folder: on a disk that all ranks of a machine see, or all machines.
        patience_s: how long a build by another process may stand still.
    """

    folder: Path
    patience_s: float

    def open(self, source: Source, tokenizer: Tokenizer, watch: Watch, head_start_s: float = 0.0) -> CachedSource:
        """The source's cache, built here where there is none and nobody else is building it.

        Args:
            watch: told of the build, where this process makes it.
            head_start_s: how long another process that wants the same gets to begin it.

        Raises:
            DestructError: the source cannot be read; the folder cannot be written; another process builds the cache and
                has not gone on for `patience_s`.
        """

        def fill(stage: Path) -> None:
            fill_stores(stage, source.documents(), tokenizer, source.marked_up, watch)
            assert source.tally is not None, "a pass that went to its end has counted"
            write_tally(stage, source.tally)

        final = self.folder / f"{source.name}-{cache_key(source, tokenizer)}"
        cache = MadeOnce(source.name, final, self.patience_s)
        return cache.get(lambda folder: open_stores(source.name, folder), fill, head_start_s)


def cache_key(source: AnySource, tokenizer: Tokenizer) -> str:
    """20 hexadecimal digits of all that decides a source's tokens."""
    folder = Path(__file__).parent
    code = [hashlib.blake2b((folder / name).read_bytes()).hexdigest() for name in _CODE]
    special = [tokenizer.eos_id, tokenizer.fast.bos_token_id]
    facts = [source.fingerprint, source.marked_up, tokenizer.text, special, tokenizers.__version__, *code]
    return hashlib.blake2b(json.dumps(facts).encode(), digest_size=10).hexdigest()


def open_stores(name: str, folder: Path) -> CachedSource | None:
    """The stores in a folder; None where there are none that are whole."""
    # What the disk refuses for another reason is no damage, and no cause to make a good cache anew.
    with suppress(FileNotFoundError, NotADirectoryError, ValueError, TypeError):
        tally = (folder / TALLY).read_text(encoding="utf-8")
        return CachedSource(name, TokenStore(folder / "train"), TokenStore(folder / "held_out"), tally)
    return None


def write_tally(stage: Path, tally: Tally) -> None:
    """The last thing that makes stores a `CachedSource`."""
    (stage / TALLY).write_text(tally.line, encoding="utf-8")
    sync(stage / TALLY)


def fill_stores(
    stage: Path, given: Iterator[Document], tokenizer: Tokenizer, marked_up: bool, watch: Watch
) -> tuple[StoreFacts, StoreFacts]:
    """Write the stores of both sides, training first.

    Args:
        stage: a folder that is not there yet.
        given: documents of both sides.
        marked_up: as `Source.marked_up`.

    Raises:
        OSError: the disk is full.
        DestructError: the documents cannot be read.
    """
    documents = tokens = 0
    bos_id = tokenizer.fast.bos_token_id
    with (
        StoreWriter(stage / "train", tokenizer.vocab_size, bos_id) as train,
        StoreWriter(stage / "held_out", tokenizer.vocab_size, bos_id) as held_out,
        ThreadPoolExecutor(1, "tokenize") as tokenizing,
    ):
        # One batch is tokenized on all cores while the next one is read.
        encoded = _ahead(tokenizing.submit(_encode, batch, tokenizer, marked_up) for batch in _batches(given))
        for ids, prompts, is_held_out in encoded:
            for writer, side in ((train, ~is_held_out), (held_out, is_held_out)):
                # In one of one token there is nothing to predict, unless it is a prompt.
                chosen = [n for n in side.nonzero()[0].tolist() if len(ids[n]) > 1 or prompts[n] != ANYWHERE]
                writer.add([ids[number] for number in chosen], [prompts[number] for number in chosen])
            documents, tokens = documents + len(ids), train.tokens + held_out.tokens
            watch(documents, tokens)
        return train.finish(), held_out.finish()


def _ahead(futures: Iterator[Future[Encoded]]) -> Iterator[Encoded]:
    """The results in order, one always on its way while another is used."""
    waiting = None
    for future in futures:
        if waiting is not None:
            yield waiting.result()
        waiting = future
    if waiting is not None:
        yield waiting.result()


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= _BATCH_CHARACTERS or len(batch) == _BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode(batch: list[Document], tokenizer: Tokenizer, marked_up: bool) -> Encoded:
    """Tokens of each document, an eos after what is complete; its prompt's tokens; which are held out."""
    ids: list[NDArray[np.int32]] = [_NOTHING] * len(batch)
    prompts = [ANYWHERE] * len(batch)
    whole = [number for number, document in enumerate(batch) if document.prompt_end is None]
    own = [number for number, document in enumerate(batch) if document.prompt_end is not None]
    eos = np.array([tokenizer.eos_id], np.int32)
    for number, text in zip(whole, tokenizer.encode([batch[n].text for n in whole], marked_up), strict=True):
        ids[number] = np.concatenate([text, eos])
    asked = tokenizer.encode([batch[n].text[: batch[n].prompt_end] for n in own], marked_up, ends=False)
    said = tokenizer.encode([batch[n].text[batch[n].prompt_end :] for n in own], marked_up, begins=False)
    for number, prompt, continuation in zip(own, asked, said, strict=True):
        ids[number] = np.concatenate([prompt, continuation, eos]) if len(continuation) else prompt
        prompts[number] = len(prompt) or ANYWHERE
    return ids, prompts, np.array([document.held_out for document in batch])


_NOTHING = np.empty(0, np.int32)
