"""Which documents of a stream are held out, where no file or split says so."""

import itertools
from collections.abc import Iterable, Iterator

from destruct.data.documents import Document
from destruct.errors import DestructError
from destruct.seeding import derive

MOST_WAITING = 10_000
"""Documents held back at most until both sides are known to get one ..."""
MOST_WAITING_CHARACTERS = 1 << 26
"""... and characters in them."""


def hold_out(name: str, documents: Iterable[Document], fraction: float, seed: int) -> Iterator[Document]:
    """Hold out a share of the texts, in the order of the stream; a text, and a prompt whatever follows it, is on one
    side however often it comes.

        key = derive(seed, "held out", prompt or text);   held out where key < fraction * 2**64

    So that each side gets a document however small the source, documents are held back until both have one.  Where the
    stream ends before, or holds back `MOST_WAITING` of them (two at least being different), the lowest key among those
    is held out and the highest trained on, there and in all that follows.

    Args:
        name: key of the source in `data.sources`.
        documents: at least one.
        fraction: in (0, 1).
        seed: of the run.

    Raises:
        DestructError: there are no two different documents.
    """
    share = int(fraction * 2**64)
    keyed = ((derive(seed, "held out", document.asked), document) for document in documents)
    waiting, characters = [next(keyed)], 0
    lowest = highest = waiting[0][0]
    for key, document in keyed:
        waiting.append((key, document))
        lowest, highest, characters = min(lowest, key), max(highest, key), characters + len(document.text)
        is_full = len(waiting) >= MOST_WAITING or characters >= MOST_WAITING_CHARACTERS
        if lowest < share <= highest or (is_full and lowest < highest):
            break
    if lowest == highest:
        raise DestructError(
            f"source {name!r} has 1 different document; it takes 2, one of them to hold out",
            "give it more documents, or a held-out part of its own (validation.*, validation_split)",
        )
    for key, document in itertools.chain(waiting, keyed):
        is_held_out = key == lowest or (key < share and key != highest)
        yield Document(document.text, is_held_out, document.prompt_end)
