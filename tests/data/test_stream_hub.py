"""Streams of the hub: real `datasets` against a hub on this machine, and what is said when it goes away."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from destruct.data.tokenizing import train_tokenizer
from destruct.exits import Exit
from tests.data.hub_datasets import EXPORT, fill, parquet
from tests.data.streams import texts
from tests.hub import Hub

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow  # each process imports `datasets`: about three seconds

CARD = b"""---
configs:
- config_name: tales
  data_files:
  - {split: train, path: tales/train-*.parquet}
  - {split: validation, path: tales/validation-*.parquet}
---
"""
COUNTS = (90, 60, 120)
KIB = 1 / 1024


@pytest.fixture(scope="module")
def hub():
    with Hub() as hub:
        fill(hub)
        files = {
            f"tales/train-0000{number}-of-00003.parquet": parquet(id=range(count), text=texts(number, count))
            for number, count in enumerate(COUNTS)
        }
        files["tales/validation-00000-of-00001.parquet"] = parquet(id=range(40), text=texts(7, 40))
        hub.add("datasets", "me/stream", {"README.md": CARD, **files})
        lines = {f"{split}.jsonl": texts(number, 40) for number, split in enumerate(("train", "validation"))}
        rows = {name: "".join(json.dumps({"text": text}) + "\n" for text in each) for name, each in lines.items()}
        hub.add("datasets", "me/lines", {name: content.encode() for name, content in rows.items()})
        yield hub


def read(hub: Hub, folder: Path, sources: dict[str, Any], *arguments: str, **variables: str) -> dict[str, Any]:
    asked = {"sources": sources, "cache": str(folder / "tokens"), "tokenizer": train_tokenizer(texts(0, 100), 300)}
    environment = hub.environment(folder / "hf") | {"PYTHONPATH": str(ROOT)} | variables
    done = subprocess.run(
        [sys.executable, "-m", "tests.data.stream_hub_worker", *arguments],
        cwd=ROOT,
        env=environment,
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


TALES = {"hub": "me/stream", "config": "tales"}
CASES: dict[str, dict[str, Any]] = {
    "tales": TALES | {"validation_split": "validation"},
    "sum": TALES | {"split": "train+validation", "validation_split": "validation"},
    "capped": TALES | {"validation_split": "validation", "max_documents": 100},
    "lines without a schema": {"hub": "me/lines", "validation_split": "validation"},
    "revision": {"hub": "me/tales", "config": "long", "revision": "v1.0", "validation_split": "validation"},
    "export": {"hub": "me/pairs", "revision": EXPORT, "config": "en-fr", "format": "translation",
               "validation_split": "test"},
}  # fmt: skip


@pytest.fixture(scope="module")
def both(hub, tmp_path_factory):
    sources = CASES | {f"{name}, streamed": source | {"streaming": True} for name, source in CASES.items()}
    sources["hashed, streamed"] = TALES | {"streaming": True}
    sources["other shards, streamed"] = TALES | {"streaming": True, "shard_mib": 1}
    return read(hub, tmp_path_factory.mktemp("cache"), sources)


@pytest.mark.parametrize("name", CASES)
def test_a_stream_has_the_documents_of_the_downloaded_data_set_in_their_order(both, name):
    whole, streamed = both[name], both[f"{name}, streamed"]
    assert (whole["kind"], streamed["kind"]) == ("Source", "StreamSource")
    assert (streamed["train"], streamed["validation"]) == (whole["train"], whole["validation"])
    assert len(whole["train"]) > 1 and whole["validation"]


def test_a_share_is_held_out_where_no_split_is_named(both):
    got = both["hashed, streamed"]
    assert sorted(got["train"] + got["validation"]) == sorted(both["tales"]["train"])
    assert 10 < len(got["validation"]) < 50


def test_the_size_of_a_shard_and_the_streaming_itself_are_part_of_the_fingerprint(both):
    fingerprints = [outcome["fingerprint"] for outcome in both.values() if "fingerprint" in outcome]
    assert len({*fingerprints}) == len(fingerprints) == len(both)


def test_one_process_downloads_each_file_once_however_many_shards_it_makes(hub, tmp_path):
    before = len(hub.requests)
    source = TALES | {"streaming": True, "shard_mib": 4 * KIB}
    got = read(hub, tmp_path, {"one": source}, "shards")["one"]
    assert len(got["digests"]) > 8
    asked = [request for request in hub.requests[before:] if request.startswith("GET") and "train-" in request]
    # The first file is asked for its schema too.
    assert len(asked) == len(COUNTS) + 1, asked
    assert not list((tmp_path / "hf").rglob("*.parquet")) and not list((tmp_path / "hf").rglob("*.arrow"))


def test_a_hub_that_goes_away_in_mid_stream_is_told_in_two_lines_and_what_was_made_stays(hub, tmp_path):
    source = TALES | {"streaming": True, "shard_mib": 4 * KIB}
    hub.broken = "train-00002-of-00003.parquet"
    try:
        got = read(hub, tmp_path, {"one": source}, "shards", "impatient")["one"]
    finally:
        hub.broken = None
    assert got["exit_code"] == Exit.ENVIRONMENT
    assert got["problem"].startswith(
        "source 'mine': the hub's data set me/stream, configuration tales could not be read on behind row 128 of its "
        "stream: "
    )
    assert got["remedy"] == (
        "go on from the last checkpoint (--resume auto) when the hub answers again, or give data.root a folder with "
        "mine/train.*"
    )
    assert 2 < len(got["digests"]) < 8
    whole = read(hub, tmp_path, {"one": source}, "shards")["one"]
    assert whole["digests"][: len(got["digests"])] == got["digests"] and len(whole["digests"]) > 8
    anew = read(hub, tmp_path / "anew", {"one": source}, "shards")["one"]
    assert anew == whole


def test_a_hub_that_is_not_there_is_told(hub, tmp_path):
    source = TALES | {"streaming": True}
    gone = read(hub, tmp_path, {"one": source}, "impatient", HF_ENDPOINT="http://127.0.0.1:9")["one"]
    assert gone["exit_code"] == Exit.ENVIRONMENT and "cannot be reached on the hub" in gone["problem"]
    offline = read(hub, tmp_path, {"one": source}, HF_HUB_OFFLINE="1")["one"]
    assert offline["exit_code"] == Exit.ENVIRONMENT and "cannot be reached on the hub" in offline["problem"]
