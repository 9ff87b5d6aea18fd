"""The sources of the curriculum benchmark: every cost against a second scorer, every entropy rate against a sample."""

import hashlib
from functools import partial

import numpy as np
import pytest

from bench.curriculum_grammar import CLOSING, OPENING, grammar, pcfg_document_means, pcfg_windows
from bench.curriculum_known import Windows, copy_windows, markov_table, phrase
from bench.curriculum_sources import MIXTURES, SOURCES, SPLITS, split_text
from destruct.seeding import uniform
from tests.bench.curriculum_scorers import next_of_chain, next_of_copy, next_of_easy, next_of_pcfg

KNOWN = [name for name, source in SOURCES.items() if source.known]
NEXT = {
    "easy": next_of_easy,
    "markov": partial(next_of_chain, table=markov_table("markov"), first=192),
    "pcfg": next_of_pcfg,
    "copy": next_of_copy,
    "duplicate": partial(next_of_chain, table=markov_table("markov"), first=192),
    "small": partial(next_of_chain, table=markov_table("small"), first=208),
}


def rows(windows: Windows) -> set[bytes]:
    return {row.tobytes() for row in windows.tokens}


@pytest.mark.parametrize("name", NEXT)
def test_every_cost_is_that_of_a_second_scorer_whose_probabilities_sum_to_one(name):
    windows = SOURCES[name].make("panel", 12, 3)
    for row, nats in zip(windows.tokens, windows.nats, strict=True):
        window = row.tobytes()
        following = [NEXT[name](window[:t]) for t in range(128)]
        assert [sum(p.values()) for p in following] == pytest.approx([1.0] * 128, abs=1e-12)
        costs = [-np.log(p[byte]) for p, byte in zip(following, window, strict=True)]
        np.testing.assert_allclose(nats, costs, rtol=1e-10, atol=1e-12)


def test_a_byte_of_noise_costs_ln_64():
    windows = SOURCES["noise"].make("test", 200, 0)
    assert (windows.nats == np.log(64)).all() and SOURCES["noise"].entropy_rate == np.log(64)
    counts = np.bincount(windows.tokens.ravel(), minlength=256)[128:192]
    assert counts.sum() == 200 * 128
    assert ((counts - 400) ** 2 / 400).sum() < 63 + 5 * np.sqrt(2 * 63)  # chi-squared of 63 degrees of freedom


@pytest.mark.parametrize("name", ["easy", "markov", "duplicate", "small"])
def test_the_entropy_rate_is_the_mean_cost_of_a_stationary_source(name):
    """The first two bytes of a chain know less than two before them, so they are left out."""
    source = SOURCES[name]
    means = source.make("panel", 3000, 5).nats[:, 2:].mean(axis=1)
    assert abs(means.mean() - source.entropy_rate) < 4 * means.std(ddof=1) / np.sqrt(len(means))


def first_documents(windows: Windows, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nats and bytes (n,) of the first document of each window, which ends with the first True of ends (n, T)."""
    assert ends.any(axis=1).all(), "a document is longer than its window"
    size = ends.argmax(axis=1) + 1
    return np.take_along_axis(windows.nats.cumsum(axis=1), size[:, None] - 1, axis=1)[:, 0], size


def assert_rate(rate: float, nats: np.ndarray, size: np.ndarray):
    """Nats over bytes of documents against their ratio, whose error is that of the mean of nats - rate * bytes."""
    residual = nats - rate * size
    assert abs(residual.mean()) < 4 * residual.std(ddof=1) / np.sqrt(len(residual))


def test_the_entropy_rate_of_copy_is_nats_over_bytes_of_documents():
    """The mean cost of a window is higher: it begins at a beginning, and the cheap half of its last document is cut."""
    windows = copy_windows(uniform(1, 0, np.arange(4000), np.arange(42)))
    nats, size = first_documents(windows, windows.tokens == ord(";"))
    assert_rate(SOURCES["copy"].entropy_rate, nats, size)
    assert abs(size.mean() - 28) < 4 * size.std() / np.sqrt(len(size))  # 2 * 13 + 2


def test_the_entropy_rate_of_pcfg_is_nats_over_bytes_of_documents():
    windows = pcfg_windows(uniform(2, 0, np.arange(1500), np.arange(1500)))
    depth = np.cumsum(np.isin(windows.tokens, OPENING).astype(int) - np.isin(windows.tokens, CLOSING), axis=1)
    nats, size = first_documents(windows, depth == 0)
    assert_rate(SOURCES["pcfg"].entropy_rate, nats, size)
    for sample, mean in zip((nats, size), pcfg_document_means(), strict=True):
        assert abs(sample.mean() - mean) < 4 * sample.std(ddof=1) / np.sqrt(len(sample))


def test_entropy_rates_are_of_the_size_that_the_benchmark_needs():
    """Easy, learnable, hopeless."""
    rates = {name: SOURCES[name].entropy_rate for name in KNOWN}
    assert 0.06 < rates["easy"] < 0.1
    assert all(1.2 < rates[name] < 1.6 for name in ("markov", "small"))
    assert 0.8 < rates["pcfg"] < 1.3 and rates["copy"] == pytest.approx((13 * np.log(16) + np.log(15)) / 28)
    assert np.isnan(SOURCES["text"].entropy_rate)


def test_in_the_grammar_the_open_bracket_decides_what_follows():
    """After the same byte, what follows differs by bracket: its kind tells more than 0.1 nats."""
    inside = grammar()[:4]
    mean = inside.mean(axis=0)
    told = (inside * np.log(inside / mean)).sum(axis=2).mean(axis=0)
    assert (told > 0.1).all()
    depth = np.array([greatest_depth(row.tobytes()) for row in SOURCES["pcfg"].make("panel", 300, 0).tokens])
    assert (depth >= 3).mean() > 0.5


def greatest_depth(window: bytes) -> int:
    signs = [(byte in b"([{<") - (byte in b")]}>") for byte in window]
    return int(np.cumsum(signs).max())


def test_about_half_of_copy_is_determined():
    nats = SOURCES["copy"].make("panel", 500, 0).nats
    assert 0.4 < (nats == 0).mean() < 0.5


def test_the_duplicate_is_the_markov_source_with_other_windows():
    markov, duplicate = SOURCES["markov"], SOURCES["duplicate"]
    assert markov.entropy_rate == duplicate.entropy_rate != SOURCES["small"].entropy_rate
    parts = [rows(source.make(split, 500, 0)) for source in (markov, duplicate) for split in SPLITS]
    assert len(set.union(*parts)) == 3000


@pytest.mark.parametrize(
    "name", ["markov", "pcfg", "copy", "noise", "small", pytest.param("text", marks=pytest.mark.slow)]
)
def test_no_window_of_a_split_is_in_another_or_in_that_of_another_seed(name):
    """The easy source is no part of this: a quarter of its windows are the phrase without a fault."""
    drawn = [SOURCES[name].make(split, 250, 0) for split in SPLITS]
    if name != "text":  # whose windows are the same for all seeds
        drawn.append(SOURCES[name].make("train", 250, 1))
    assert len(set.union(*map(rows, drawn))) == 250 * len(drawn)


def test_windows_of_the_easy_source_are_alike_but_for_their_faults():
    tokens = np.concatenate([SOURCES["easy"].make(split, 1000, 0).tokens for split in SPLITS])
    faults = tokens != np.resize(phrase(), 128)
    expected = 0.01 * 63 / 64
    assert abs(faults.mean() - expected) < 4 * np.sqrt(expected / faults.size)
    assert not (faults[:1000] == faults[1000:2000]).all(axis=1).all()


def test_the_small_source_has_40_kilobytes_for_training_and_any_number_held_out():
    small = SOURCES["small"]
    assert small.make("train", 5000, 0).tokens.shape == (312, 128) == (small.training_windows, 128)
    assert len(small.make("train", 100, 0).tokens) == 100
    assert len(rows(small.make("panel", 1000, 0))) == 1000


@pytest.mark.slow
def test_a_paragraph_of_the_text_is_in_one_split_alone():
    text = split_text()
    sizes = {split: len(text[split]) for split in SPLITS}
    assert sizes["train"] > 400_000 and sizes["panel"] >= 256 * 128 and sizes["test"] >= 48 * 128
    train, *held_out = [set(text[split].split(b"\n\n")) for split in SPLITS]
    assert not train & set.union(*held_out) and not set.intersection(*held_out)
    assert all(part.isascii() for part in text.values())
    assert SOURCES["text"].make("panel", 10**6, 0).tokens.shape == (sizes["panel"] // 128, 128)


@pytest.mark.parametrize("name", SOURCES)
def test_a_longer_draw_begins_with_the_windows_of_a_shorter_one(name):
    short, long = (SOURCES[name].make("train", count, 7) for count in (5, 40))
    assert (short.tokens == long.tokens[:5]).all() and (short.nats == long.nats[:5]).all()
    assert long.tokens.shape == (40, 128) and long.tokens.dtype == np.uint8 and np.isfinite(long.nats).all()
    other = SOURCES[name].make("train", 40, 8)
    assert (other.tokens != long.tokens).any()


def test_the_bytes_are_the_same_on_every_machine():
    digest = hashlib.sha256(b"".join(SOURCES[name].make("train", 50, 0).tokens.tobytes() for name in KNOWN))
    assert digest.hexdigest()[:16] == "c792e59a55459327"


def test_the_sources_are_told_apart_by_the_first_byte():
    firsts = {name: set(SOURCES[name].make("train", 200, 0).tokens[:, 0]) for name in MIXTURES["clean"]}
    firsts |= {"noise": set(range(128, 192)), "small": set(range(208, 224))}
    apart = [firsts[a] & firsts[b] for a in firsts for b in firsts if a < b and {a, b} != {"pcfg", "text"}]
    assert not any(apart)


def test_an_unknown_split_is_refused():
    for name in SOURCES:
        with pytest.raises(ValueError, match="no split 'Train'; there are train, panel, test"):
            SOURCES[name].make("Train", 1, 0)


def test_costs_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"nats is \(2, 3\); tokens is \(2, 4\)"):
        Windows(np.zeros((2, 4), dtype=np.uint8), np.zeros((2, 3)))
