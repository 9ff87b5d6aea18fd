"""data.root: folders in the place of the hub, with no request to it."""

import socket
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from destruct.config.data import DataConfig
from destruct.errors import DestructError
from tests.data.corpora import load_sources

TEXTS = [f"document {number}" for number in range(40)]


def write_corpora(root: Path) -> Path:
    """Two tables in the columns of their hub data sets, and a text file beside them."""
    (root / "talks").mkdir(parents=True)
    pairs = [{"en": text, "fr": f"fr {text}"} for text in TEXTS]
    pq.write_table(pa.table({"translation": pairs[:30]}), root / "talks" / "train.parquet")
    pq.write_table(pa.table({"translation": pairs[30:]}), root / "talks" / "validation.parquet")
    (root / "daily").mkdir()
    pq.write_table(
        pa.table({"dialog": [[" Hi. ", f"{n}?"] for n in range(9)], "act": [[1, 2]] * 9}), root / "daily/train.parquet"
    )
    (root / "lines.txt").write_text("one\ntwo\n")
    return root


HUB_SOURCES = {
    "talks": {"hub": "me/europarl", "config": "en-fr", "format": "translation", "language": "fr"},
    "daily": {"hub": "me/daily_dialog", "revision": "refs/convert/parquet", "format": "dialog"},
    "lines": {"path": "lines.txt"},
}


def test_a_root_replaces_the_hub_by_folders_of_the_sources_names_and_holds_relative_paths(tmp_path, monkeypatch):
    write_corpora(tmp_path / "corpora")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *address, **_: pytest.fail("the network was asked"))
    config = DataConfig.model_validate({"root": "~/corpora", "sources": HUB_SOURCES})
    daily, lines, talks = load_sources(config, 0)
    assert talks.train == [f"fr {text}" for text in TEXTS[:30]]
    assert talks.validation == [f"fr {text}" for text in TEXTS[30:]]
    assert sorted(daily.train + daily.validation) == [f"Hi.\n{n}?" for n in range(9)]
    assert sorted(lines.train + lines.validation) == ["one", "two"]


def test_an_absolute_path_is_not_looked_up_from_the_root(tmp_path):
    write_corpora(tmp_path / "corpora")
    outside = tmp_path / "a.txt"
    outside.write_text("out\nside\n")
    config = DataConfig.model_validate({"root": str(tmp_path / "corpora"), "sources": {"a": {"path": str(outside)}}})
    (got,) = load_sources(config, 0)
    assert sorted(got.train + got.validation) == ["out", "side"]


def test_a_source_that_the_root_does_not_hold_is_told_with_its_folder_and_its_id(tmp_path):
    sources = {"mine": HUB_SOURCES["talks"]}
    config = DataConfig.model_validate({"root": str(tmp_path), "sources": sources})
    with pytest.raises(DestructError) as caught:
        load_sources(config, 0)
    assert f"'mine': {tmp_path / 'mine'} does not exist" in caught.value.problem
    assert caught.value.remedy == "put train.* of me/europarl there, or leave data.root out to download it"
