"""The texts that need no download."""

import ast
import hashlib
import math
import subprocess
import sys
import typing
from collections import Counter

import numpy as np
import pytest

from destruct.config.data import DataConfig, SourceConfig
from destruct.data.embedded import (
    EMBEDDED,
    MARKOV_ALPHABET,
    NOISE_ALPHABET,
    NOISE_ENTROPY,
    markov_entropy_rate,
    markov_table,
    stationary_pairs,
)
from destruct.errors import DestructError

SIZE = 60_000


@pytest.fixture(scope="module")
def texts() -> dict[str, list[str]]:
    return {name: generate(SIZE, 5) for name, generate in EMBEDDED.items()}


def test_the_config_knows_exactly_the_embedded_sources():
    literal, none = typing.get_args(SourceConfig.model_fields["embedded"].annotation)
    assert set(typing.get_args(literal)) == set(EMBEDDED) and none is type(None)


@pytest.mark.parametrize("name", EMBEDDED)
def test_documents_are_different_of_the_stated_length_and_stop_at_the_size(texts, name):
    lengths = [len(text.encode()) for text in texts[name]]
    assert sum(lengths[:-1]) < SIZE <= sum(lengths)
    assert min(lengths) >= 180 and max(lengths) <= 2300 and max(lengths) > 2 * min(lengths)
    assert len(set(texts[name])) == len(lengths)
    assert all(text.strip() for text in texts[name])


@pytest.mark.parametrize("name", EMBEDDED)
def test_a_smaller_size_is_a_prefix_and_another_seed_another_text(texts, name):
    shorter = EMBEDDED[name](SIZE // 4, 5)
    assert texts[name][: len(shorter)] == shorter
    assert EMBEDDED[name](SIZE // 4, 6) != shorter


@pytest.mark.slow
def test_the_text_is_the_same_in_another_process(texts):
    program = (
        "import hashlib; from destruct.data.embedded import EMBEDDED\n"
        f"print(hashlib.sha256(repr([make({SIZE}, 5) for make in EMBEDDED.values()]).encode()).hexdigest())"
    )
    found = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for hash_seed in ("1", "2")
    ]
    assert set(found) == {hashlib.sha256(repr(list(texts.values())).encode()).hexdigest()}


@pytest.mark.slow
def test_no_docstring_of_the_code_is_prose(texts):
    everything = "\n".join(EMBEDDED["code"](400_000, 1))
    openings = [text.split("\n\n")[0] for text in EMBEDDED["prose"](400_000, 2)]
    # A docstring that two modules word alike is the one way to share a paragraph.
    assert sum(opening in everything for opening in openings) <= 0.01 * len(openings)


def test_most_code_parses_and_prose_is_words(texts):
    def parses(text: str) -> bool:
        try:
            ast.parse(text)
        except SyntaxError:  # a piece of a function too long for a document
            return False
        return True

    assert np.mean([parses(text) for text in texts["code"]]) > 0.7
    letters = sum(character.isalpha() or character.isspace() for text in texts["prose"] for character in text)
    assert letters > 0.85 * sum(map(len, texts["prose"]))


def test_every_equation_of_arithmetic_holds(texts):
    equations = [
        part for text in texts["arithmetic"] for line in text.split("\n") for part in line.split(": ")[1].split(", ")
    ]
    assert len(equations) > 4000
    for equation in equations:
        left, right = equation.split("=")
        assert eval(left, {"__builtins__": {}}) == int(right), equation  # noqa: S307 - digits and one operator


def test_arithmetic_asks_what_its_last_step_answers(texts):
    for line in (line for text in texts["arithmetic"] for line in text.split("\n")):
        question, working = line.split(": ")
        assert working.split(", ")[-1].split("=")[0] == question


def test_dialogues_alternate_between_two_people_and_their_totals_are_right(texts):
    totals = 0
    for text in texts["dialogue"]:
        speakers = [line.split(": ")[0] for line in text.split("\n")]
        assert len(set(speakers)) == 2 and len(speakers) >= 4
        assert all(one != other for one, other in zip(speakers, speakers[1:], strict=False))
        assert "{" not in text and "[" not in text and "|" not in text
        lines = text.split("\n")
        for asked, answered in zip(lines, lines[1:], strict=False):
            if " euros for " in asked and " euros" in answered:
                total, count = (int(word) for word in asked.rstrip("?").replace("?", " ").split() if word.isdigit())
                price = next(int(word) for word in answered.split() if word.isdigit())
                assert total == price * count
                totals += 1
    assert totals > 5


def test_markov_rate_of_chains_worked_by_hand():
    """Two symbols: a fair coin has ln 2; a coin of bias 1/4 its binary entropy; 'repeat with 9/10' that of .1."""
    coin = np.full((2, 2, 2), 0.5)
    assert markov_entropy_rate(coin) == pytest.approx(math.log(2), abs=1e-12)
    biased = np.tile([0.25, 0.75], (2, 2, 1))
    assert markov_entropy_rate(biased) == pytest.approx(0.25 * math.log(4) + 0.75 * math.log(4 / 3), abs=1e-12)
    np.testing.assert_allclose(stationary_pairs(biased), [[1 / 16, 3 / 16], [3 / 16, 9 / 16]], atol=1e-12)
    sticky = np.array([[[0.9, 0.1], [0.1, 0.9]]] * 2)
    assert markov_entropy_rate(sticky) == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1), abs=1e-12)


def test_markov_table_is_a_table_of_probabilities_and_its_pairs_are_stationary():
    table, size = markov_table(), len(MARKOV_ALPHABET)
    assert table.shape == (size, size, size) and table.min() > 0
    np.testing.assert_allclose(table.sum(axis=-1), 1, atol=1e-12)
    pairs = np.full((size, size), 1 / size**2)
    for _ in range(300):  # power iteration, as against the linear solve
        pairs = np.einsum("ij,ijk->jk", pairs, table)
    np.testing.assert_allclose(stationary_pairs(table), pairs, atol=1e-10)


def test_markov_text_has_the_exact_conditional_entropy():
    """400,000 symbols: the plug-in estimate is low by 448/(2n) = .0006 and scatters by about .001."""
    triples: Counter[tuple[str, ...]] = Counter()
    pairs: Counter[tuple[str, ...]] = Counter()
    for text in EMBEDDED["markov"](400_000, 0):
        for first, second, third in zip(text, text[1:], text[2:], strict=False):
            triples[first, second, third] += 1
            pairs[first, second] += 1
    count = sum(pairs.values())
    entropy = -sum(number * math.log(number / pairs[triple[:2]]) for triple, number in triples.items()) / count
    assert entropy == pytest.approx(markov_entropy_rate(), abs=0.005)
    assert 0.8 < markov_entropy_rate() < 0.7 * math.log(len(MARKOV_ALPHABET))


def test_noise_is_uniform_over_64_symbols(texts):
    assert len(NOISE_ALPHABET) == len(set(NOISE_ALPHABET)) == 64 and pytest.approx(4.158883083) == NOISE_ENTROPY
    counts = Counter("".join(texts["noise"]))
    assert set(counts) == set(NOISE_ALPHABET)
    expected = counts.total() / 64
    # Chi-square, 63 degrees of freedom, one in a thousand.
    assert sum((number - expected) ** 2 / expected for number in counts.values()) < 103.4


@pytest.mark.slow
def test_more_than_the_standard_library_holds_is_an_error_with_the_size_there_is():
    with pytest.raises(DestructError, match=r"embedded_bytes is 1000000000.*holds \d+ bytes of 'prose'") as caught:
        EMBEDDED["prose"](10**9, 0)
    held = int(caught.value.problem.split("holds ")[1].split()[0])
    assert held > DataConfig.model_fields["embedded_bytes"].default
    assert f"at most {held}" in caught.value.remedy
