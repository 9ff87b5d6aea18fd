"""Every shipped DeepSpeed file trains: two updates at two ranks, as it is."""

import json

import pytest

from tests.distributed.launching import ROOT
from tests.forked import train_ranks
from tests.tiny import write_config

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

TRIED = ["zero2.json", "zero3_offload.json", "zero3_offload_all.json", "zero3_nvme.json"]


def test_every_file_is_tried():
    """zero3.json and frozen_cpu_offload.json are those of all other runs."""
    shipped = {path.name for path in (ROOT / "ds_configs").glob("*.json")}
    assert shipped == {*TRIED, "zero3.json", "frozen_cpu_offload.json"}


@pytest.mark.parametrize("name", TRIED)
def test_it_trains(tmp_path, monkeypatch, name):
    monkeypatch.setenv("NVME_PATH", str(tmp_path))
    short = ["run.num_epochs=1", "run.updates_per_epoch=2", f"engine.deepspeed={ROOT / 'ds_configs' / name}"]
    done = train_ranks(2, write_config(tmp_path), *short)
    assert done.returncode == 0, done.stderr[-4000:]
    summary = json.loads((tmp_path / "tiny" / "summary.json").read_text())
    assert (summary["updates"], summary["skipped_steps"]) == (2, 0)
    assert summary["validation_loss_after"]["arithmetic"] < summary["validation_loss_before"]["arithmetic"]
