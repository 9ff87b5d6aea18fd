"""Whole runs on FSDP at two ranks: resume bit for bit, and the golden figures beside ZeRO-3's."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from tests.distributed.launching import ROOT
from tests.forked import train_ranks
from tests.tiny import write_config

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

GOLDEN = ROOT / "tests" / "golden"
MACHINE = ("time/", "memory/")


def start(config: Path, *overrides: str) -> str:
    """What a run says."""
    done = train_ranks(2, config, "engine.backend=fsdp", *overrides)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def figures(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: x for name, x in line.items() if not name.startswith(MACHINE)} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Six updates, checkpoints after the third and the sixth: the run's folder."""
    folder = tmp_path_factory.mktemp("whole")
    assert "ppo        6/6" in start(write_config(folder))
    return folder / "tiny"


def tensors(checkpoint: Path, scratch: Path) -> dict:
    """All that DCP wrote of both networks, put together by torch's own converter."""
    found = {}
    for role in ("policy", "value"):
        dcp_to_torch_save(checkpoint / role, scratch / "whole.pt")
        found[role] = torch.load(scratch / "whole.pt", weights_only=False)
    return found


def test_six_updates_equal_three_and_resume_and_three_in_every_tensor_moment_and_figure(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "tiny")
    checkpoints = tmp_path / "tiny" / "checkpoints"
    shutil.rmtree(checkpoints / "step-00000006")
    (checkpoints / "latest").write_text("step-00000003\n")
    (tmp_path / "tiny" / "summary.json").unlink()
    assert "resumed after update 3" in start(write_config(tmp_path), "run.resume=auto")
    assert figures(tmp_path / "tiny") == figures(whole)
    last = "checkpoints/step-00000006"
    a, b = (tensors(folder / last, tmp_path) for folder in (whole, tmp_path / "tiny"))
    for role in ("policy", "value"):
        assert a[role].keys() == b[role].keys() == {"weights", "adam"}
        assert a[role]["weights"].keys() == a[role]["adam"].keys()
        for name, weight in a[role]["weights"].items():
            assert weight.dtype == torch.float32 and torch.equal(weight, b[role]["weights"][name])
            moments = a[role]["adam"][name]
            assert moments.keys() == {"step", "exp_avg", "exp_avg_sq"} and moments["exp_avg_sq"].any()
            assert all(torch.equal(x, b[role]["adam"][name][key]) for key, x in moments.items())
    frozen = [load_file(folder / last / "frozen/model.safetensors") for folder in (whole, tmp_path / "tiny")]
    assert all(torch.equal(x, frozen[1][name]) for name, x in frozen[0].items())


def test_the_first_ratio_of_every_update_is_exactly_one(whole):
    errors = [line["ppo/first_ratio_error"] for line in figures(whole) if "ppo/steps" in line]
    assert errors == [0.0] * 6


@pytest.mark.parametrize("backend", ["deepspeed", "fsdp"])
def test_the_golden_run_gives_its_figures_on_two_ranks(backend, tmp_path):
    """Recorded on plain torch, in one process: float32, ten updates, early stops and breaches among them."""
    golden = [json.loads(line) for line in (GOLDEN / "figures.jsonl").read_text().splitlines()]
    zero3 = json.loads((GOLDEN / "golden.json").read_text()) | {"zero_optimization": {"stage": 3}}
    (tmp_path / "zero3.json").write_text(json.dumps(zero3))
    changes = [f"run.folder={tmp_path}", f"engine.backend={backend}", f"engine.deepspeed={tmp_path / 'zero3.json'}"]
    start(GOLDEN / "run.yaml", *changes)
    got = figures(tmp_path / "golden")
    assert [(line["phase"], line["step"]) for line in got] == [(line["phase"], line["step"]) for line in golden]
    for now, then in zip(got, golden, strict=True):
        names = [name for name in then if name not in ("phase", "step") and then[name] is not None]
        assert {name: now[name] for name in names} == pytest.approx(
            {name: then[name] for name in names}, rel=1e-3, abs=1e-5
        ), (then["phase"], then["step"])
