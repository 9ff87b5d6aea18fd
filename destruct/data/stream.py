"""A source that is streamed: its documents in shards, each of which says where the next one begins.

A shard is the documents from where the last one ended up to the one that reaches `shard_mib` of text, so that shards
are decided by the stream alone.
"""

from collections import Counter
from collections.abc import Container, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from destruct.config.data import DataConfig, SourceConfig
from destruct.data.documents import Document, Reading, Tally, text_digest
from destruct.data.formatters import RowFormat
from destruct.data.loading import HubData, HubStream, Place
from destruct.seeding import derive


@dataclass(frozen=True, slots=True)
class Start:
    """Where a shard begins."""

    place: Place = Place()
    taken: int = 0
    """Documents before it, for `max_documents`."""
    ended: bool = False
    """Nothing comes after it: there is no such shard."""

    def as_json(self) -> dict[str, Any]:
        """In JSON's types."""
        return asdict(self)

    @classmethod
    def of(cls, facts: dict[str, Any]) -> Self:
        """From `as_json`.  Raises TypeError where the facts are others, KeyError where one is missing."""
        return cls(**facts | {"place": Place(**facts["place"])})


class StreamSource:
    """One data set of the mixture that is streamed, opened; `open_source` makes it.

    Args:
        name: key of the source in `data.sources`.
        source: its section.
        config: the whole data section.
        seed: the run's seed.
        hub: its data.
        row_format: what makes texts of rows.
        fingerprint: as `Source.fingerprint`.
    """

    def __init__(
        self,
        name: str,
        source: SourceConfig,
        config: DataConfig,
        seed: int,
        hub: HubData,
        row_format: RowFormat,
        fingerprint: str,
    ):
        self.name, self.fingerprint = name, fingerprint
        self.marked_up = source.format == "chat"
        """As `Source.marked_up`."""
        self.shard_bytes = round(source.shard_mib * 2**20)
        self._source, self._row_format, self._hub, self._seed = source, row_format, hub, seed
        self._share = int(config.validation_fraction * 2**64)

    def documents(self) -> Iterator[Document]:
        """All shards, one after another, what is held out by a split first; errors are those of `StreamPass`."""
        digests: set[int] = set()
        for document in self.held_out_split(self.reading()):
            digests.add(text_digest(document.asked))
            yield document
        whole = StreamPass(self, Start(), digests)
        while not whole.next.ended:
            yield from whole.shard()

    def reading(self) -> Reading:
        """What makes documents of its rows."""
        return Reading(self.name, self._source, self._row_format)

    def held_out_split(self, reading: Reading) -> Iterator[Document]:
        """Documents of the validation split, up to the one that reaches `shard_mib`; none where no split is named.

        Raises:
            DestructError: it cannot be read, a row is bad and not to be skipped, or there is nothing in it.
        """
        if self._source.validation_split is None:
            return
        size = 0
        for document in reading.documents([self._hub.stream(self._source.validation_split)], held_out=True):
            yield document
            size += len(document.text.encode())
            if size >= self.shard_bytes:
                return

    def stream(self, place: Place) -> HubStream:
        """The training split from a place on.  Raises DestructError where the hub does not give it."""
        return self._hub.stream(self._source.split, place)

    def is_held_out(self, document: Document) -> bool:
        """Whether a document of the training split is held out; the rule of `hold_out`, with no care for small sources.

        key = derive(seed, "held out", prompt or text);   held out where key < validation_fraction * 2**64
        """
        return self._source.validation_split is None and derive(self._seed, "held out", document.asked) < self._share


class StreamPass:
    """Reads a stream on and on, shard by shard.

    Args:
        source: the stream.
        start: where the next shard begins.
        elsewhere: digests of what is asked in the held-out split, which is left out.

    Raises:
        DestructError: the hub does not give it.
    """

    def __init__(self, source: StreamSource, start: Start, elsewhere: Container[int]):
        self.next = start
        """Where the next shard begins, once all documents of this one were given."""
        self._source, self._reading, self._table = source, source.reading(), source.stream(start.place)
        self._rest = self._reading.documents([self._table], elsewhere=elsewhere, taken=start.taken)
        self._before: Counter[str] = Counter()
        self._given: Counter[bool] = Counter()

    def shard(self) -> Iterator[Document]:
        """The documents of the next shard, each on its side.

        Raises:
            DestructError: the stream cannot be read, a row is bad and not to be skipped, or there is nothing in it.
        """
        self._before, self._given = Counter(self._reading.counts), Counter()
        taken, size = self.next.taken, 0
        for document in self._rest:
            taken += 1
            # Nothing is read ahead here: the last row that the stream gave is this document's.
            self.next = Start(self._table.place, taken)
            is_held_out = self._source.is_held_out(document)
            self._given[is_held_out] += 1
            yield Document(document.text, is_held_out, document.prompt_end)
            size += len(document.text.encode())
            if size >= self._source.shard_bytes:
                return
        self.next = Start(self._table.place, taken, ended=True)

    def later_shard(self) -> Iterator[Document]:
        """Those to train on alone: panels and validation are of the first shard, and stay as they are."""
        return (document for document in self.shard() if not document.held_out)

    def tally(self, also: Mapping[str, int], held_out: int) -> Tally:
        """What became of the rows of that shard.

        Args:
            also: counts of the `Reading` of a held-out split.
            held_out: documents of it.
        """
        counts = Counter(self._reading.counts)
        counts.subtract(self._before)
        counts.update(also)
        return Tally.of(counts, self._given[False], self._given[True] + held_out)
