"""The JSON keys that FSDP cannot honour, each refused by name; what it heeds or always does passes."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FSDP = "engine.backend=fsdp"


def test_it_reads_the_shipped_files_of_zero3(files):
    assert files.load(FSDP, world_size=2).config.engine.backend == "fsdp"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("zero2", "zero_optimization.stage = 2: it always shards parameters, as 3 does"),
        ("zero3_offload", "zero_optimization.offload_optimizer.device = cpu: the networks that train stay on"),
    ],
)
def test_the_other_shipped_files_are_refused_by_what_differs(files, refusal, name, problem):
    path = ROOT / "ds_configs" / f"{name}.json"
    said, remedy = refusal(lambda: files.load(FSDP, f"engine.deepspeed={path}"))
    assert said.startswith(f"{path}: engine.backend=fsdp cannot honour {problem}")
    assert remedy.endswith("or set engine.backend: deepspeed")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("zero_optimization.overlap_comm", False),
        ("zero_optimization.contiguous_gradients", False),
        ("zero_optimization.reduce_scatter", False),
        ("zero_optimization.round_robin_gradients", True),
        ("zero_optimization.reduce_bucket_size", 5 * 10**8),
        ("zero_optimization.sub_group_size", 10**9),
        ("zero_optimization.stage3_param_persistence_threshold", 0),
        ("zero_optimization.stage3_max_live_parameters", 0),
        ("zero_optimization.memory_efficient_linear", True),
        ("zero_optimization.offload_param", {"device": "cpu"}),
        ("optimizer.params.torch_adam", False),
        ("wall_clock_breakdown", True),
        ("steps_per_print", 10),
    ],
)
def test_a_key_of_zeros_own_is_refused_for_the_networks_that_train(files, refusal, key, value):
    files.change_train({key: value})
    problem, _ = refusal(lambda: files.load(FSDP))
    assert problem.startswith(f"{files.train}: engine.backend=fsdp cannot honour {key}")
    assert files.load("engine.backend=deepspeed").config.engine.backend == "deepspeed"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("zero_optimization.stage3_max_live_parameters", 0),
        ("zero_optimization.offload_optimizer", {"device": "cpu"}),
        ("bf16", {"enabled": False}),
        ("wall_clock_breakdown", True),
    ],
)
def test_a_key_of_zeros_own_is_refused_for_the_frozen_model(files, refusal, key, value):
    files.change_frozen({key: value})
    problem, _ = refusal(lambda: files.load(FSDP))
    assert problem.startswith(f"{files.frozen}: engine.backend=fsdp cannot honour {key}")


@pytest.mark.parametrize("offload", [None, {"device": "none"}, {"device": "cpu", "pin_memory": True}])
def test_where_the_frozen_model_rests_is_heeded(files, offload):
    files.change_frozen({"zero_optimization.offload_param": offload})
    files.change_train({"zero_optimization.offload_param": {"device": "none"}, "zero_optimization.overlap_comm": True})
    files.load(FSDP)


def test_what_asks_for_nothing_passes(files):
    files.change_train({"zero_optimization.round_robin_gradients": False, "zero_optimization.overlap_comm": True})
    files.change_frozen({"bf16": {"enabled": True}})
    files.load(FSDP)
