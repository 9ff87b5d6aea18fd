"""Holding out by a hash of the text, as a stream: the rule for a whole list, and no text on both sides."""

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from destruct.data.documents import Document
from destruct.data.holding_out import MOST_WAITING, hold_out
from destruct.errors import DestructError
from destruct.seeding import derive


def documents(texts) -> Iterator[Document]:
    return (Document(text, held_out=False) for text in texts)


def by_the_whole_list(texts: list[str], fraction: float, seed: int) -> list[bool]:
    """The threshold that a reader of all texts would set: the lowest key below it, the highest not."""
    keys = [derive(seed, "held out", text) for text in texts]
    threshold = min(max(int(fraction * 2**64), min(keys) + 1), max(keys))
    return [key < threshold for key in keys]


texts = st.lists(st.sampled_from([f"text {n}" for n in range(30)]), min_size=2, max_size=60)
fractions = st.sampled_from([1e-9, 0.01, 0.1, 0.5, 0.9, 1 - 1e-9])


@settings(deadline=None)
@given(texts.filter(lambda texts: len(set(texts)) > 1), fractions, st.integers(0, 9))
def test_a_stream_is_split_as_a_reader_of_all_of_it_would_and_no_text_is_on_both_sides(texts, fraction, seed):
    got = list(hold_out("mine", documents(texts), fraction, seed))
    assert [document.text for document in got] == texts, "in its order, all of it"
    assert [document.held_out for document in got] == by_the_whole_list(texts, fraction, seed)
    sides = [{document.text for document in got if document.held_out is side} for side in (False, True)]
    assert all(sides) and not sides[0] & sides[1]


@settings(deadline=None)
@given(texts.filter(lambda texts: len(set(texts)) > 1), fractions, st.integers(0, 9))
def test_no_prompt_is_on_both_sides_whatever_follows_it(prompts, fraction, seed):
    asked = [Document(f"{prompt}: answer {n}", False, len(prompt) + 1) for n, prompt in enumerate(prompts)]
    sides = (
        {d.text[: d.prompt_end] for d in hold_out("mine", iter(asked), fraction, seed) if d.held_out is s}
        for s in (True, False)
    )
    held_out, trained = sides
    assert held_out and trained and not held_out & trained


def test_documents_come_as_soon_as_both_sides_are_known_to_get_one():
    drawn = []
    stream = (drawn.append(n) or Document(f"text {n}", False) for n in itertools.count())
    next(hold_out("mine", stream, 0.1, 0))
    assert len(drawn) < 100  # a tenth is held out: 100 in a row are not in 1 case of 40,000


@pytest.mark.parametrize("fraction", [1e-15, 1 - 1e-15])
def test_where_a_share_is_too_small_for_the_first_documents_one_of_them_is_taken_and_none_after(fraction):
    """Longer than what is held back; the side that would stay empty gets one text, and its repetition at the end."""
    texts = [f"text {n}" for n in range(MOST_WAITING + 500)]
    got = list(hold_out("mine", documents(texts), fraction, 0))
    rare = [document.text for document in got if document.held_out is (fraction < 0.5)]
    keys = {text: derive(0, "held out", text) for text in texts[:MOST_WAITING]}
    assert rare == [(min if fraction < 0.5 else max)(keys, key=keys.__getitem__)]
    again = list(hold_out("mine", documents([*texts, *rare]), fraction, 0))
    assert again[-1].held_out is (fraction < 0.5)


def test_one_text_over_and_over_is_refused():
    with pytest.raises(DestructError, match="source 'mine' has 1 different document; it takes 2"):
        list(hold_out("mine", documents(["again"] * 50), 0.1, 0))
