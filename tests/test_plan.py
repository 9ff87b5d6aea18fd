"""`destruct plan` as people call it: fast, without torch, right where it refuses."""

import itertools
import json
import struct

import pytest

from destruct.errors import DestructError
from destruct.plan import device_counts, main
from destruct.planning.report import plan
from destruct.planning.sweep import given_to_a_rank
from tests.planning.planned import job
from tests.test_doors import HEAVY, ROOT, go

BASE = ["--config", str(ROOT / "configs" / "base.yaml")]


def told(capsys, *arguments: str) -> dict:
    assert main([*BASE, "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *arguments: str) -> str:
    assert main([*arguments]) == 2
    problem = capsys.readouterr().err
    assert problem.count("\n") == 2 and problem.startswith("destruct: ") and "  remedy: " in problem
    return problem


def test_it_imports_nothing_heavy():
    done, modules = go(ROOT, "plan", "--config", "configs/base.yaml")
    assert done.returncode == 0, done.stderr
    assert "policy 1,235.8 million parameters" in done.stdout
    assert not modules & (HEAVY - {"pydantic"}) and "matplotlib" not in modules


def test_the_table_has_every_part_and_says_what_it_assumes(capsys):
    assert main(BASE) == 0
    said = capsys.readouterr().out
    for words in ("replica", "optimizer", "activations", "all-gather", "reduce-scatter", "assumed:"):
        assert words in said
    assert "128 rollouts of up to 512 tokens an update = 4 minibatches x 2 accumulated x 8 ranks x 2" in said


def test_json_has_the_same_figures_as_the_run_would(capsys):
    said = told(capsys)
    assert said["batch"] == {
        "rollouts": 128,
        "minibatches": 4,
        "gradient_accumulation_steps": 2,
        "micro_batch": 2,
        "optimizer_steps_per_update": 8,
    }
    assert said["fits"] and said["remedy"] is None
    device = next(room for room in said["memory"] if room["place"] == "device")
    at_peak = [p for p in said["parts"] if p["place"] == "device" and p["moment"] in ("always", device["moment"])]
    assert sum(part["bytes"] for part in at_peak) == device["asked"] == device["moments_of_a_rank"][device["moment"]]
    assert said["seconds_per_update"] == pytest.approx(sum(phase["seconds"] for phase in said["phases"]))
    assert said["tokens_per_second"] == pytest.approx(128 * 512 / said["seconds_per_update"])


def test_a_sweep_lets_the_rollouts_grow_and_never_gets_more_efficient(capsys):
    rows = told(capsys, "--gpus", "8..1024")["sweep"]
    assert [row["devices"] for row in rows] == [8, 16, 32, 64, 128, 256, 512, 1024]
    assert [row["rollouts"] for row in rows] == [128 * row["devices"] // 8 for row in rows]
    efficiencies = [row["efficiency"] for row in rows]
    assert efficiencies[0] == 1
    assert all(later <= 1.01 * earlier for earlier, later in itertools.pairwise(efficiencies))
    assert all(row["fits"] for row in rows)


def test_a_chart_is_drawn(capsys, tmp_path):
    assert main([*BASE, "--gpus", "8,16", "--png", str(tmp_path / "plan.png")]) == 0
    header = (tmp_path / "plan.png").read_bytes()[:24]
    width, height = struct.unpack(">II", header[16:])
    assert header.startswith(b"\x89PNG") and width > 1000 and height > 300


def test_the_chart_of_a_rank_has_the_memory_of_a_rank():
    """A GPU's own; 12 GiB of the host for each of 16 CPU ranks, 8 to a machine."""
    gpus, cpus = (plan(job(ranks=16, hardware=kind)) for kind in ("h100", "cpu"))
    assert given_to_a_rank(gpus) == 80e9 - 1.5 * 2**30
    assert given_to_a_rank(cpus) == 12 * 2**30


def test_a_chart_that_cannot_be_written_is_refused(capsys, tmp_path):
    assert "cannot be written" in refused(capsys, *BASE, "--png", str(tmp_path / "none" / "plan.png"))


def test_a_run_that_does_not_fit_says_by_how_much_and_what_would(capsys):
    said = refused(capsys, *BASE, "--memory-gib", "12")
    assert "GiB of device memory in 'policy " in said and "more than the 10.50 of NVIDIA H100" in said
    assert "remedy: offload the optimizer as ds_configs/zero3_offload.json does" in said


def test_a_number_of_devices_that_the_batch_does_not_divide_by_is_refused(capsys):
    said = refused(capsys, *BASE, "--gpus", "12")
    assert "rollout.batch_size=128 does not divide" in said and "12 ranks" in said and "96 or 192" in said


@pytest.mark.parametrize("text", ["0", "eight", "8..4", "", "8,,16", "0..8", "2000000", "8.."])
def test_what_is_no_number_of_devices_is_refused(capsys, text):
    with pytest.raises(DestructError, match="--gpus"):
        device_counts(text)


def test_numbers_of_devices():
    assert device_counts("8") == [8] and device_counts("16,8,8") == [8, 16]
    assert device_counts("3..13") == [3, 6, 12]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpus-per-node", "0"], "--gpus-per-node 0"),
        (["--memory-gib", "-1"], "--memory-gib -1"),
        (["--memory-gib", "inf"], "--memory-gib inf"),
        (["--hardware", "cpu", "--memory-gib", "8"], "a CPU has its host's"),
        (["--png", "plan"], "no name of a PNG file"),
        (["--hardware", "abacus"], "invalid choice: 'abacus'"),
        (["ppo.epoch=2"], "ppo.epoch"),
        (["engine.backend=single"], "single runs in one process"),
        (["engine.backend=fsdp", "engine.deepspeed=ds_configs/zero2.json"], "zero_optimization.stage = 2"),
    ],
)
def test_options_that_cannot_be_planned_are_refused(capsys, arguments, words):
    assert words in refused(capsys, *BASE, *arguments)
