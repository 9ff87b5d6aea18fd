"""The shards of a stream as tokens on the disk: each is made once by one process, and few of them stay.

A stream is a folder of the cache.  shard-00007/ holds two stores, as the cache of any source; shard-00007.json says
where the next shard begins and what was left out of this one, and stays when the tokens are removed, so that any shard
can be made again.
"""

import itertools
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from destruct.data.documents import Document, Tally, text_digest
from destruct.data.made_once import MadeOnce
from destruct.data.stream import Start, StreamPass, StreamSource
from destruct.data.token_cache import CachedSource, Watch, cache_key, fill_stores, open_stores, write_tally
from destruct.data.tokenizing import Tokenizer
from destruct.durable import sync
from destruct.errors import DestructError

SHARDS_KEPT = 4
"""Shards besides the first whose tokens stay: what runs draw from, what they draw from next, and two for slow ranks."""
ELSEWHERE = "held_out_texts.bin"
"""In the first shard: `text_digest` of what each document of the held-out split asks, 16 bytes each, little-endian."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CachedStream(CachedSource):
    """The first shard of a stream, and the way to the others; `tally` is of that shard."""

    shards: "StreamShards"

    @property
    def digest(self) -> str:
        """Of what decides all tokens, those of the first shard among it."""
        return f"{self.shards.fingerprint} {self.train.facts.digest} {self.held_out.facts.digest}"


class StreamShards:
    """The shards of one stream.

    Args:
        cache: folder of all caches, on a disk that all ranks of a machine see, or all machines.
        source: the stream.
        tokenizer: makes the tokens.
        patience_s: how long a build by another process may stand still.
    """

    def __init__(self, cache: Path, source: StreamSource, tokenizer: Tokenizer, patience_s: float):
        self.name, self.fingerprint = source.name, source.fingerprint
        self.folder = cache / f"{source.name}-{cache_key(source, tokenizer)}.stream"
        self._source, self._tokenizer, self._patience_s = source, tokenizer, patience_s
        self._live: StreamPass | None = None
        self._building = threading.Lock()  # the live pass is at one place

    @property
    def is_new(self) -> bool:
        """Whether nothing is known of the stream."""
        return self.after(0) is None

    def after(self, number: int) -> Start | None:
        """Where the shard behind `number` begins; None where that is not known yet."""
        if number < 0:
            return Start()
        with suppress(OSError, ValueError, TypeError, KeyError):
            return Start.of(json.loads(self.path(number, ".json").read_text(encoding="utf-8"))["next"])
        return None

    def path(self, number: int, suffix: str = "") -> Path:
        """A shard's folder, or the file of that suffix beside it."""
        return self.folder / f"shard-{number:05}{suffix}"

    def close(self) -> None:
        """Read no further; what was read on from shard to shard is let go of."""
        with self._building:
            self._live = None

    def touch(self, number: int) -> None:
        """Say that a shard is in use: those that were not for longest are removed first."""
        with suppress(OSError):  # removed already, and still readable where it is open
            os.utime(self.path(number))

    def cached(self, watch: Watch, head_start_s: float = 0.0) -> CachedStream:
        """The stream by its first shard; arguments and errors are those of `open`."""
        first = self.open(0, lambda stores: stores, watch, head_start_s)
        assert first is not None, "a stream without a document is an error"
        return CachedStream(first.name, first.train, first.held_out, first.tally, self)

    def open(self, number: int, use: Callable[[CachedSource], T], watch: Watch, head_start_s: float = 0.0) -> T | None:
        """A shard; made here, and before it what leads to it, where nobody has made it or is making it.

        Args:
            use: called with the shard, whose folder is not removed meanwhile.
            watch: told of what is made here.
            head_start_s: how long another process gets to begin making it, if this one is not already reading there.

        Returns:
            what `use` made of it; None where the stream ends before it.

        Raises:
            DestructError: the stream cannot be read; its first shard has not both sides; the folder cannot be written;
                another process makes a shard and has not gone on for `patience_s`.
        """
        begun = number
        while (start := self.after(begun - 1)) is None:
            begun -= 1
        for shard in range(begun, number + 1):
            start = self.after(shard - 1)
            assert start is not None, "the shard before was made"
            if start.ended:
                return None
            if shard < number:
                self._get(shard, start, lambda stores: stores, watch, head_start_s)
        return self._get(number, start, use, watch, head_start_s)

    def _get(self, number: int, start: Start, use: Callable[[CachedSource], T], watch: Watch, head_start_s: float) -> T:
        if self._live is not None and self._live.next == start:
            head_start_s = 0.0

        def fill(stage: Path) -> None:
            with self._building:
                self._fill(stage, number, start, watch)

        def opened(folder: Path) -> T | None:
            # Both are looked for: of a machine that went down at the wrong time only one may be left.
            stores = None if self.after(number) is None else open_stores(self.name, folder)
            with suppress(FileNotFoundError):  # removed meanwhile; not once the lock is held
                return None if stores is None else use(stores)
            return None

        found = MadeOnce(self.name, self.path(number), self._patience_s).get(opened, fill, head_start_s)
        self.touch(number)
        self._make_room()
        return found

    def _fill(self, stage: Path, number: int, start: Start, watch: Watch) -> None:
        reading, self._live = self._live, None  # what fails in the middle is at no place
        if number == 0:
            reading, tally = self._fill_first(stage, watch)
        else:
            if reading is None or reading.next != start:
                reading = StreamPass(self._source, start, self._elsewhere())
            fill_stores(stage, reading.later_shard(), self._tokenizer, self._source.marked_up, watch)
            tally = reading.tally({}, 0)
        write_tally(stage, tally)
        self._write(number, reading.next, tally)
        self._live = reading

    def _fill_first(self, stage: Path, watch: Watch) -> tuple[StreamPass, Tally]:
        split = self._source.reading()
        digests: dict[int, None] = {}  # in the order of the texts, so that equal shards are equal files
        held_out = 0
        reading = StreamPass(self._source, Start(), digests)

        def held_out_split() -> Iterator[Document]:
            nonlocal held_out
            for document in self._source.held_out_split(split):
                held_out += 1
                digests[text_digest(document.asked)] = None
                yield document

        documents = itertools.chain(held_out_split(), reading.shard())
        stores = fill_stores(stage, documents, self._tokenizer, self._source.marked_up, watch)
        tally = reading.tally(split.counts, held_out)
        for facts, verb in zip(stores, ("train on", "hold out"), strict=True):
            if not facts.documents:
                raise DestructError(
                    f"source {self.name!r}: the first {self._source.shard_bytes / 2**20:g} MiB of its stream hold "
                    f"nothing to {verb} ({tally.line})",
                    f"raise data.sources.{self.name}.shard_mib or data.validation_fraction, or name a validation_split",
                )
        (stage / ELSEWHERE).write_bytes(b"".join(digest.to_bytes(16, "little") for digest in digests))
        sync(stage / ELSEWHERE)
        return reading, tally

    def _elsewhere(self) -> set[int]:
        digests = (self.path(0) / ELSEWHERE).read_bytes()
        return {int.from_bytes(digests[at : at + 16], "little") for at in range(0, len(digests), 16)}

    def _write(self, number: int, following: Start, tally: Tally) -> None:
        """Say where the next shard begins, before this one has its name: without that a shard is of no use.

        The counts tell whom it may concern what was left out.
        """
        file = self.path(number, ".json")
        staged = self.path(number, ".json.tmp")
        staged.write_text(json.dumps({"next": following.as_json(), "tally": asdict(tally)}), encoding="utf-8")
        sync(staged)
        os.replace(staged, file)

    def _make_room(self) -> None:
        used = sorted((_last_use(folder), folder) for folder in self.folder.glob("shard-*") if _is_shard(folder))
        for _, folder in used[:-SHARDS_KEPT]:
            MadeOnce(self.name, folder, self._patience_s).remove()


def _is_shard(folder: Path) -> bool:
    """One that may be removed: the first one stays."""
    return re.fullmatch(r"shard-\d+", folder.name) is not None and int(folder.name.removeprefix("shard-")) > 0


def _last_use(folder: Path) -> int:
    with suppress(OSError):  # another process removes it
        return folder.stat().st_mtime_ns
    return 0
