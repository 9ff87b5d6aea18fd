"""The whole command with a source that is streamed from a hub on this machine, beside an embedded one."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from destruct.exits import Exit
from tests.data.hub_datasets import parquet
from tests.data.streams import texts
from tests.distributed.test_train import differences, figures, lines
from tests.hub import Hub
from tests.tiny import ROOT, write_config

pytestmark = pytest.mark.slow

CARD = b"""---
configs:
- config_name: tales
  data_files:
  - {split: train, path: tales/train-*.parquet}
  - {split: validation, path: tales/validation-*.parquet}
---
"""
STREAM = {"hub": "me/stream", "config": "tales", "validation_split": "validation", "streaming": True}


@pytest.fixture(scope="module")
def hub():
    with Hub() as hub:
        files = {
            f"tales/train-{number}.parquet": parquet(id=range(count), text=texts(number, count))
            for number, count in enumerate((20, 7, 60))
        }
        files["tales/validation-0.parquet"] = parquet(id=range(30), text=texts(9, 30))
        hub.add("datasets", "me/stream", {"README.md": CARD, **files})
        yield hub


def streaming_config(folder: Path, **source: object) -> Path:
    """The tiny run on a stream, whose shards last for about an update each, and on arithmetic."""
    path = write_config(folder)
    config = yaml.safe_load(path.read_text())
    config["data"]["sources"] = {
        "tales": STREAM | {"shard_mib": 1.5 / 1024} | source,
        "arithmetic": {"embedded": "arithmetic"},
    }
    config["data"]["cache"] = str(folder / "cache")
    config["rollout"]["batch_size"] = 32
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def train(hub: Hub, folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "destruct.train", "--config", str(folder / "tiny.yaml"), "engine.backend=single"]
        + list(arguments),
        cwd=folder,
        env=hub.environment(folder / "hf") | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | variables,
        capture_output=True,
        text=True,
        timeout=100,
    )


@pytest.fixture(scope="module")
def whole(hub, tmp_path_factory) -> Path:
    """The folder of six updates in two epochs."""
    folder = tmp_path_factory.mktemp("whole")
    streaming_config(folder)
    done = train(hub, folder)
    assert done.returncode == 0, done.stderr
    assert "tales (streaming, first shard): " in done.stdout
    return folder


def shards_drawn_from(folder: Path) -> int:
    """Shards that were made, at least one being drawn from and the next one made ahead."""
    return len(list((folder / "cache").glob("tales-*.stream/shard-?????.json")))


def take_up(whole: Path, folder: Path) -> None:
    """The run as it was after its first epoch, in another folder."""
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    shutil.rmtree(folder / "tiny/checkpoints/step-00000006")
    (folder / "tiny/checkpoints/latest").write_text("step-00000003\n")
    streaming_config(folder)


@pytest.mark.parametrize("cache", ["kept", "removed"])
def test_two_epochs_equal_one_and_a_resume_and_one_in_every_tensor_and_figure(hub, whole, tmp_path, cache):
    assert shards_drawn_from(whole) > 4
    take_up(whole, tmp_path)
    if cache == "removed":
        shutil.rmtree(tmp_path / "cache")
    done = train(hub, tmp_path, "--resume", "auto")
    assert done.returncode == 0, done.stderr
    assert "resumed after update 3" in done.stdout
    assert ("tales: its cache is gone; the stream is read again" in done.stdout) == (cache == "removed")
    a, b = (folder / "tiny/checkpoints/step-00000006" for folder in (whole, tmp_path))
    names = sorted(path.relative_to(a).as_posix() for path in a.rglob("*.pt"))
    assert names and names == sorted(path.relative_to(b).as_posix() for path in b.rglob("*.pt"))
    for name in names:
        assert not differences(*(torch.load(root / name, weights_only=False) for root in (a, b)))
    states = [json.loads((root / "state.json").read_text()) for root in (a, b)]
    assert states[0].pop("seconds") and states[1].pop("seconds") and states[0] == states[1]
    assert figures(whole / "tiny") == figures(tmp_path / "tiny")
    assert lines(whole / "tiny/samples.jsonl") == lines(tmp_path / "tiny/samples.jsonl")


def test_a_run_that_loses_the_hub_ends_with_two_lines_and_goes_on_when_it_is_back(hub, whole, tmp_path):
    """Its cache is gone too, so that it needs the hub at once."""
    take_up(whole, tmp_path)
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "sitecustomize.py").write_text("import time\ntime.sleep = lambda seconds: None\n")  # between two tries
    hub.broken = "train-2.parquet"
    try:
        done = train(hub, tmp_path, "--resume", "auto", PYTHONPATH=f"{tmp_path}:{ROOT}")
    finally:
        hub.broken = None
    assert done.returncode == Exit.ENVIRONMENT, done.stderr
    *_, problem, remedy = done.stderr.splitlines()
    assert problem.startswith("destruct: source 'tales': the hub's data set me/stream, configuration tales could not")
    assert "--resume auto" in remedy and "Traceback" not in done.stderr
    assert train(hub, tmp_path, "--resume", "auto").returncode == 0
    assert figures(whole / "tiny") == figures(tmp_path / "tiny")


def test_a_stream_that_comes_at_a_resume_has_lost_no_cache(hub, whole, tmp_path):
    take_up(whole, tmp_path)
    sources = {"more": STREAM | {"shard_mib": 1.5 / 1024}, "arithmetic": {"embedded": "arithmetic"}}
    done = train(hub, tmp_path, "--resume", "auto", f"data.sources={json.dumps(sources)}")
    assert done.returncode == 0, done.stderr
    assert "source 'more' is new" in done.stdout and "source 'tales' is gone" in done.stdout
    assert "its cache is gone" not in done.stdout


def test_a_stream_without_the_length_of_an_epoch_is_refused(hub, tmp_path):
    streaming_config(tmp_path)
    done = train(hub, tmp_path, "run.updates_per_epoch=null")
    assert done.returncode == Exit.CONFIG
    problem, remedy = done.stderr.splitlines()
    assert "data.sources.tales is streaming" in problem and "run.updates_per_epoch" in problem + remedy


def test_under_data_root_the_local_files_are_read(hub, tmp_path):
    streaming_config(tmp_path)
    (tmp_path / "root/tales").mkdir(parents=True)
    for name, count in (("train", 300), ("validation", 40)):
        (tmp_path / f"root/tales/{name}.parquet").write_bytes(parquet(text=texts(4, count)))
    before = len(hub.requests)
    done = train(hub, tmp_path, f"data.root={tmp_path / 'root'}", "run.num_epochs=1", "run.updates_per_epoch=null")
    assert done.returncode == 0, done.stderr
    assert "streaming" not in done.stdout and len(hub.requests) == before
