"""What is left out of a source, in which order, and what is counted."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from destruct.data.documents import Tally
from tests.data.corpora import TEXTS, fault, load, opened, texts_of, write


def test_texts_of_too_few_characters_are_left_out_white_space_around_them_not_counted(tmp_path):
    file = write(tmp_path / "a.jsonl", ["", "  \n", "ab", "  ab  ", "abc", " abc \n", "abcd"])
    assert sorted(texts_of(file, min_characters=3)) == [" abc \n", "abc", "abcd"]
    source = opened(file, min_characters=3)
    assert len(list(source.documents())) == 3
    assert (source.tally.rows, source.tally.empty, source.tally.short) == (7, 2, 2)
    assert source.tally.line == "7 rows: 2 to train on, 1 held out; left out: 2 empty, 2 short"


def test_a_text_that_came_before_is_left_out_where_that_is_asked_for(tmp_path):
    file = write(tmp_path / "a.jsonl", [*TEXTS, *TEXTS[:5], TEXTS[0]])
    assert len(texts_of(file)) == 46
    source = opened(file, deduplicate=True)
    assert [document.text for document in source.documents()] == TEXTS
    assert source.tally.duplicate == 6
    assert len(texts_of(write(tmp_path / "b.jsonl", ["a ", "a"]), deduplicate=True)) == 2, "to the character"


def test_the_cap_counts_what_passes_the_other_filters(tmp_path):
    """Of nine rows one is bad, one empty, one short, three repeat; the tenth is not read."""
    rows = ["", "one one", 3, "one one", "x", "two two", "one one", "two two", "three three", "four four"]
    file = write(tmp_path / "a.jsonl", rows)
    source = opened(file, on_bad_row="skip", min_characters=5, deduplicate=True, max_documents=3)
    assert [document.text for document in source.documents()] == ["one one", "two two", "three three"]
    left_out = {"empty": 1, "short": 1, "duplicate": 3, "also_held_out": 0, "bad": 1}
    assert {name: getattr(source.tally, name) for name in left_out} == left_out
    assert source.tally.rows == 9 and source.tally.trained + source.tally.held_out == 3


def test_the_filters_of_a_held_out_file_are_its_own(tmp_path):
    """A text of training that stands there too is left out of training, and not counted twice."""
    write(tmp_path / "train.jsonl", [*TEXTS[:20], TEXTS[3], TEXTS[30], ""])
    write(tmp_path / "validation.jsonl", [*TEXTS[30:], TEXTS[3], TEXTS[31], ""])
    got = load(tmp_path)
    assert got.train == [text for text in TEXTS[:20] if text != TEXTS[3]]
    assert got.validation == [*TEXTS[30:], TEXTS[3], TEXTS[31]]
    source = opened(tmp_path, deduplicate=True)
    held_out = [document.held_out for document in source.documents()]
    assert held_out == [True] * 11 + [False] * 19, "the held-out ones come first"
    assert source.tally == Tally(
        rows=36, trained=19, held_out=11, empty=2, short=0, duplicate=1, also_held_out=3, bad=0
    )


def test_a_held_out_file_that_holds_all_of_training_leaves_nothing_and_says_so(tmp_path):
    write(tmp_path / "train.jsonl", TEXTS[:3]), write(tmp_path / "validation.jsonl", TEXTS)
    problem = fault(tmp_path).problem
    assert f"{tmp_path / 'train.jsonl'} holds no non-empty document" in problem
    assert "(3 rows: 0 to train on, 0 held out; left out: 3 also held out)" in problem


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_no_text_is_ever_on_both_sides(tmp_path_factory, data):
    """Random corpora of few words, with and without a held-out file of their own, under every filter."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = random.Random(data.draw(st.integers(0, 10**6)))
    some = [f"{rng.choice('abcdef')} {rng.choice('abcdef')}" for _ in range(rng.randrange(3, 80))]
    write(folder / "train.jsonl", ["the first one", *some, "the last one"])
    if data.draw(st.booleans()):
        write(folder / "validation.txt", rng.sample(some, k=len(some) // 2) + ["of validation alone"])
    options = {"deduplicate": data.draw(st.booleans()), "min_characters": data.draw(st.sampled_from([1, 3]))}
    got = load(folder, seed=data.draw(st.integers(0, 5)), fraction=0.3, **options)
    assert got.train and got.validation and not set(got.train) & set(got.validation)


def test_each_pass_counts_anew_and_a_pass_that_is_given_up_counts_nothing(tmp_path):
    source = opened(write(tmp_path / "a.jsonl", TEXTS))
    assert source.tally is None
    first = list(source.documents())
    tally = source.tally
    assert list(source.documents()) == first and source.tally == tally and tally.rows == 40
    next(source.documents())
    assert source.tally == tally


@pytest.mark.parametrize("suffix", [".jsonl", ".txt", ".parquet"])
def test_a_file_of_nothing_or_of_empty_rows_says_how_many_rows_it_has(tmp_path, suffix):
    file = write(tmp_path / f"a{suffix}", ["", " ", "\t"])
    assert "(3 rows: 0 to train on, 0 held out; left out: 3 empty)" in fault(file).problem
