"""The token cache: each source is tokenized once, by one process, and every run and rank that wants the same maps it.

A cache is a folder named by the source and a key of all that decides its tokens: the source's fingerprint, the
tokenizer, and the code that makes the one of the other.  It appears under that name when it is whole and on the disk.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import filelock
import numpy as np
import tokenizers
from numpy.typing import NDArray

from destruct.data.documents import Document
from destruct.data.sources import Source
from destruct.data.store import ANYWHERE, StoreWriter, TokenStore
from destruct.data.tokenizing import Tokenizer
from destruct.durable import publish, sync
from destruct.errors import DestructError
from destruct.exits import Exit

TALLY = "tally.txt"
_BATCH_CHARACTERS = 1 << 20  # of documents tokenized at once
_BATCH_DOCUMENTS = 4096
_POLL_S = 0.05
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
        final = self.folder / f"{source.name}-{cache_key(source, tokenizer)}"
        lock = filelock.FileLock(final.with_name(f"{final.name}.lock"))
        with self._disk_faults(source.name):
            self.folder.mkdir(parents=True, exist_ok=True)
            _let_begin(final, Path(lock.lock_file), head_start_s)
            found = _opened(source.name, final)
            if found is not None:
                return found
            self._take(lock, source.name)
            try:
                found = _opened(source.name, final)  # built while this process waited
                if found is None:
                    _build(source, tokenizer, final, _heartbeat(Path(lock.lock_file), watch))
                    found = _opened(source.name, final)
                assert found is not None, "a cache that was just built opens"
                return found
            finally:
                lock.release()

    def _take(self, lock: filelock.BaseFileLock, name: str) -> None:
        """Wait for the lock for as long as its holder, which touches the file, goes on."""
        beat, since = 0, time.monotonic()
        while True:
            with suppress(filelock.Timeout):
                lock.acquire(timeout=min(1.0, self.patience_s), poll_interval=_POLL_S)
                return
            with suppress(FileNotFoundError):
                now = os.stat(lock.lock_file).st_mtime_ns
                beat, since = (now, time.monotonic()) if now != beat else (beat, since)
            if time.monotonic() - since > self.patience_s:
                raise DestructError(
                    f"source {name!r}: another process holds {lock.lock_file} and has written nothing for "
                    f"{self.patience_s:.0f} s",
                    "end that process, or give data.cache another folder",
                    Exit.ENVIRONMENT,
                )

    @contextmanager
    def _disk_faults(self, name: str) -> Iterator[None]:
        try:
            yield
        except (OSError, NotImplementedError) as error:  # the latter where a file system cannot lock
            free = "unknown"
            with suppress(OSError):
                free = f"{shutil.disk_usage(self.folder).free / 2**20:,.0f} MiB"
            raise DestructError(
                f"source {name!r}: the token cache in {self.folder} cannot be written ({free} free): "
                f"{getattr(error, 'strerror', None) or error}",
                "make room there, or set data.cache to a folder on another disk",
                Exit.ENVIRONMENT,
            ) from error


def cache_key(source: Source, tokenizer: Tokenizer) -> str:
    """20 hexadecimal digits of all that decides a source's tokens."""
    folder = Path(__file__).parent
    code = [hashlib.blake2b((folder / name).read_bytes()).hexdigest() for name in _CODE]
    facts = [source.fingerprint, source.marked_up, tokenizer.text, tokenizer.eos_id, tokenizers.__version__, *code]
    return hashlib.blake2b(json.dumps(facts).encode(), digest_size=10).hexdigest()


def _let_begin(final: Path, lock: Path, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and not final.exists() and not lock.exists():
        time.sleep(_POLL_S)


def _opened(name: str, folder: Path) -> CachedSource | None:
    """The cache in a folder; None where there is none that is whole."""
    with suppress(OSError, ValueError, TypeError):
        tally = (folder / TALLY).read_text(encoding="utf-8")
        return CachedSource(name, TokenStore(folder / "train"), TokenStore(folder / "held_out"), tally)
    return None


def _heartbeat(lock: Path, watch: Watch) -> Watch:
    """Tell those who wait for the lock that its holder goes on."""

    def beat(documents: int, tokens: int) -> None:
        os.utime(lock)
        watch(documents, tokens)

    return beat


def _build(source: Source, tokenizer: Tokenizer, final: Path, watch: Watch) -> None:
    """Write a cache beside its final name and give it that name; the lock is held."""
    for left in final.parent.glob(f"{final.name}.*.tmp"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    if final.exists():  # and does not open
        shutil.rmtree(final)
    stage = final.with_name(f"{final.name}.{os.getpid()}.tmp")
    try:
        _fill(stage, source, tokenizer, watch)
        publish(stage, final)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _fill(stage: Path, source: Source, tokenizer: Tokenizer, watch: Watch) -> None:
    documents = tokens = 0
    bos_id = tokenizer.fast.bos_token_id
    with (
        StoreWriter(stage / "train", tokenizer.vocab_size, bos_id) as train,
        StoreWriter(stage / "held_out", tokenizer.vocab_size, bos_id) as held_out,
        ThreadPoolExecutor(1, "tokenize") as tokenizing,
    ):
        # One batch is tokenized on all cores while the next one is read.
        encoded = _ahead(
            tokenizing.submit(_encode, batch, tokenizer, source.marked_up) for batch in _batches(source.documents())
        )
        for ids, prompts, is_held_out in encoded:
            for writer, side in ((train, ~is_held_out), (held_out, is_held_out)):
                # In a document of one token there is nothing to predict.
                chosen = [number for number in side.nonzero()[0].tolist() if len(ids[number]) > 1]
                writer.add([ids[number] for number in chosen], [prompts[number] for number in chosen])
            documents, tokens = documents + len(ids), train.tokens + held_out.tokens
            watch(documents, tokens)
        train.finish()
        held_out.finish()
    assert source.tally is not None, "a pass that went to its end has counted"
    (stage / TALLY).write_text(source.tally.line, encoding="utf-8")
    sync(stage / TALLY)


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
