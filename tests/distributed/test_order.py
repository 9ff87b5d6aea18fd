"""One order of the data at any number of ranks, who build the token caches between them."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from destruct.engine.topology import Topology
from tests.distributed.order_worker import BATCHES, SIZE, order
from tests.forked import run_ranks
from tests.tiny import write_config

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def config_with_an_end(folder: Path) -> Path:
    """Three sources, one of which ends while the batches are drawn, and a cache that nobody has filled."""
    path = write_config(folder)
    config = yaml.safe_load(path.read_text())
    config["data"]["sources"]["dialogue"] = {"embedded": "dialogue", "max_documents": 10, "on_exhausted": "drop"}
    config["data"]["cache"] = str(folder / "cache")
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def test_one_two_and_four_ranks_draw_the_same_batches_and_share_each_of_them_out(tmp_path):
    config = config_with_an_end(tmp_path)
    for ranks in (4, 2):
        done = run_ranks(ranks, "tests.distributed.order_worker", str(config), str(tmp_path))
        assert done.returncode == 0, done.stderr[-3000:]
    alone = order(config, Topology(0, 1, torch.device("cpu")))
    assert alone["mine"] == list(range(BATCHES * SIZE))
    ended = alone["state"]["cursors"]["dialogue"]
    for ranks in (2, 4):
        found = [json.loads((tmp_path / f"{ranks}-{rank}.json").read_text()) for rank in range(ranks)]
        for each in found:
            assert {**each, "mine": None} == {**alone, "mine": None}
        assert sorted(sample for each in found for sample in each["mine"]) == alone["mine"]
        assert ended == found[0]["state"]["cursors"]["dialogue"] and found[0]["state"]["deficits"]["dialogue"] == 0.0
    caches = [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    assert len(caches) == 3, "built once each, by one of four ranks"
