"""The benchmark of the data layer: what its contenders read and what its figures mean, not how long anything takes."""

import csv
import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import loader_cold
from bench.loader import Contender, append
from bench.loader_memory import write_store
from bench.loader_ours import packed_batches, rollout_batches
from bench.loader_texts import EMBEDDED_TEXTS, make_corpus
from destruct.data.store import TokenStore
from tests.corpora import SOURCES, write_corpora
from tests.data.stores import random_documents, store_of

peers = pytest.importorskip("bench.loader_peers", reason="torchdata is not installed")

ROOT = Path(__file__).resolve().parents[2]
B, T = 4, 8
FIGURES = (
    "warm_tokens_per_s",
    "rollout_tokens_per_s",
    "interleave_tokens_per_s",
    "interleave_bulk_tokens_per_s",
    "torchdata_bulk_tokens_per_s",
    "torchdata_tokens_per_s",
    "warm_ratio",
    "interleave_bulk_ratio",
    "torchdata_bulk_ratio",
    "torchdata_ratio",
    "cold_tokens_per_s",
    "tokenizer_tokens_per_s",
    "cold_ratio_to_tokenizer",
    "rss_growth_mib",
)


@pytest.fixture
def stores(tmp_path):
    """Short documents and long ones."""
    return {
        name: store_of(tmp_path / name, random_documents(seed, 60, longest, bos=False))
        for seed, (name, longest) in enumerate({"short": 6, "long": 90}.items())
    }


def test_rows_are_joined_and_cut_and_the_rest_is_dropped():
    rows = [np.arange(0, 5), np.arange(5, 6), np.arange(6, 40), np.arange(40, 47)]
    first, second, third = peers.in_batches(rows, 2, 7)
    assert torch.cat([first, second, third]).flatten().tolist() == list(range(42))
    assert first.shape == (2, 7) and first.dtype == torch.int64


def test_the_sources_of_the_peers_are_equal_in_tokens():
    """Rows of 2 tokens and of 6: three of the one to one of the other."""
    assert peers._equal_in_tokens([np.array([0, 2, 4]), np.array([10, 16, 22, 28])]) == pytest.approx([0.75, 0.25])


@pytest.mark.slow
def test_every_setting_of_every_peer_gives_windows_of_the_stores(stores, tmp_path):
    """Of windows cut beforehand each row is one of them; of documents each row is part of some of them, joined."""
    windows = {
        tuple(row)
        for store in stores.values()
        for row in store.tokens[: len(store.tokens) // T * T].reshape(-1, T).tolist()
    }
    tokens = {token for store in stores.values() for token in store.tokens.tolist()}
    ways = peers.peers(stores, tmp_path / "peers", B, T)
    assert list(ways) == ["interleave", "interleave_bulk", "torchdata", "torchdata_bulk"]
    for setting, start in [way for named in ways.values() for way in named.items() if "processes" not in way[0]]:
        batches = list(islice(start(), 3))
        assert [(tuple(batch.shape), batch.dtype) for batch in batches] == [((B, T), torch.int64)] * 3, setting
        rows = torch.cat(batches).tolist()
        assert ({tuple(row) for row in rows} <= windows) if "windows" in setting else ({*sum(rows, [])} <= tokens)


def test_shares_of_the_peers_are_those_of_their_probabilities(stores, tmp_path):
    """Half of the tokens come from each source, which is told by its documents' lengths: eos is 1."""
    ways = peers.peers(stores, tmp_path / "peers", 64, T)
    share_of = {name: float((store.tokens == 1).mean()) for name, store in stores.items()}
    wanted = sum(share_of.values()) / 2
    for peer in ("interleave_bulk", "torchdata"):
        start = next(start for name, start in ways[peer].items() if "documents" in name)
        read = torch.cat(list(islice(start(), 8)))
        assert float((read == 1).double().mean()) == pytest.approx(wanted, rel=0.15)


def test_our_batches_come_from_the_stores_by_weights_that_move(stores):
    packed = list(islice(packed_batches(stores, B, T), 20))
    assert {tuple(batch.shape) for batch in packed} == {(B, T)} and packed[0].dtype == torch.int64
    rollouts = list(islice(rollout_batches(stores, 16, T), 20))
    shares = [float((batch.source == 0).double().mean()) for batch in rollouts]
    assert min(shares) < 0.3 and max(shares) > 0.7


def test_a_contender_counts_the_tokens_of_its_batches_and_begins_anew():
    """Two batches of 6 a time, the first of which is not counted; after the second it begins again."""
    begun = []

    def start():
        begun.append(0)
        return iter([torch.zeros(2, 3), torch.zeros(2, 3)])

    assert Contender(start).tokens_per_s(0.05) > 0
    assert len(begun) > 2


def test_a_made_up_store_has_the_size_that_was_asked_for(tmp_path):
    write_store(tmp_path / "store", 0.5)
    store = TokenStore(tmp_path / "store")
    assert store.tokens.dtype == np.uint16
    assert 0.5 <= store.tokens.nbytes / 2**20 < 0.5 + 4
    assert store.facts.tokens / store.facts.documents == pytest.approx(401, rel=0.1)


def test_appended_figures_have_the_columns_of_the_results(tmp_path):
    report = {
        "texts": "embedded",
        "documents": 3,
        "tokens": 9,
        "batch": 4,
        "window": 8,
        "cores": 2,
        "load": 0.1,
        "torchdata_tokens_per_s": 2e6,
        "torchdata_setting": "documents",
        "warm_ratio": 0.5,
        "warm_ratio_spread": [0.4, 0.6],
        "rss_growth_mib": 1.25,
    }
    append(report, tmp_path / "results.csv")
    lines = list(csv.reader((tmp_path / "results.csv").open()))
    assert lines[0] == next(csv.reader((ROOT / "bench" / "results.csv").open()))
    assert [line[1:7] for line in lines[1:]] == [
        ["loader", "torchdata", "", "2e+06", "", "tokens/s"],
        ["loader", "warm ratio", "", "0.5", "", "1"],
        ["loader", "rss growth", "", "1.25", "", "MiB"],
    ]
    assert lines[1][7].endswith("; documents")


def test_the_caches_hold_what_the_tokenizer_alone_makes_and_an_eos_a_document(tmp_path):
    """Of the five data sets' columns, held-out files included."""
    write_corpora(tmp_path / "corpora", 20_000)
    corpus = make_corpus(tmp_path / "texts", 1.0, tmp_path / "corpora")
    _, tokens = loader_cold.tokenize(corpus, 100)
    _, caches = loader_cold.build(corpus, tmp_path / "caches")
    assert [cache.name for cache in caches] == sorted(SOURCES)
    facts = [store.facts for cache in caches for store in (cache.train, cache.held_out)]
    assert sum(each.documents for each in facts) == len(corpus.texts)
    assert sum(each.tokens for each in facts) == tokens + len(corpus.texts)


@pytest.mark.slow
def test_one_line_of_json_holds_every_figure():
    """On a fortieth of the texts."""
    sizes = ["--scale", "0.025", "--cold-rounds", "1", "--warm-rounds", "1", "--seconds", "0.01", "--mib", "0.1"]
    command = [sys.executable, "-m", "bench.loader", *sizes, "--batch", "16", "--window", "32", "--batches", "20"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=True)
    (line,) = done.stdout.splitlines()
    report = json.loads(line)
    assert not [name for name in FIGURES if not isinstance(report[name], float)]
    assert report["tokens"] > report["documents"] > len(EMBEDDED_TEXTS)
    assert all(report[f"{name}_setting"] for name in ("interleave", "interleave_bulk", "torchdata", "torchdata_bulk"))
