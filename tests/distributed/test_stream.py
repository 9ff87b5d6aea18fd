"""A stream on two ranks: one of them reads it for both, and where one cannot read it, both end."""

import json
import re
from pathlib import Path

import pytest
import yaml

from tests.data.hub_datasets import parquet
from tests.data.streams import texts
from tests.distributed.launching import run
from tests.distributed.test_train import LITERAL
from tests.hub import Hub
from tests.tiny import write_config

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

ROWS = """import os

import destruct.inputs

destruct.inputs.HEAD_START_S = 6.0  # rank 1 waits for rank 0 even where that one is slow

def row(row):
    return row["text"]

calls = []

def moody(row):
    calls.append(row)
    if os.environ["RANK"] == "0" and len(calls) > 130:
        raise ValueError("not today")
    return row["text"]
"""


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with Hub() as hub:
        hub.add("datasets", "me/stream", {"train.parquet": parquet(id=range(90), text=texts(0, 90))})
        for name, value in hub.environment(tmp_path / "hf").items():
            monkeypatch.setenv(name, value)
        yield hub


def config(folder: Path, function: str) -> str:
    (folder / "stream_rows.py").write_text(ROWS)
    path = write_config(folder)
    values = yaml.safe_load(path.read_text())
    stream = {"hub": "me/stream", "streaming": True, "shard_mib": 2 / 1024, "format": f"stream_rows:{function}"}
    values["data"] |= {
        "cache": str(folder / "cache"),
        "validation_fraction": 0.3,
        "sources": {"tales": stream, "noise": {"embedded": "noise"}},
    }
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return str(path)


def test_two_ranks_draw_from_shards_that_one_of_them_made(hub, tmp_path):
    done = run([*LITERAL, config(tmp_path, "row")], module_path=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads((tmp_path / "tiny/summary.json").read_text())["skipped_steps"] == 0
    assert len(list((tmp_path / "cache").glob("tales-*.stream/shard-?????.json"))) == 6


def test_a_stream_that_one_rank_alone_cannot_read_ends_both_and_the_rank_is_named(hub, tmp_path):
    """Rank 0 has read 90 rows for the tokenizer and gives up in a later shard; rank 1, which waited, makes that one."""
    done = run([*LITERAL, config(tmp_path, "moody")], module_path=tmp_path)
    assert done.returncode == 2
    said = r"destruct: rank 0: source 'tales', row \d+ of the hub's data set me/stream, split train: .*not today"
    assert re.search(said, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
