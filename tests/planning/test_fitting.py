"""What does not fit, by how much, and what would: the setting that is named is tried here as a person would."""

import re
from dataclasses import replace

import pytest

from destruct.config.offload import Offload
from destruct.config.settings import load
from destruct.errors import DestructError
from destruct.planning.fitting import check_fits, fits, nearest, rooms
from destruct.planning.hardware import GIB
from destruct.planning.job import Job, job_of
from destruct.planning.memory import plan_memory
from tests.planning.planned import ROOT, job


def on(planned: Job, gib: float) -> Job:
    """The same job on devices of so much memory that it can use."""
    return replace(planned, hardware=replace(planned.hardware, memory=gib * GIB + planned.hardware.reserved))


def test_a_job_fits_up_to_the_byte():
    planned = job(config="base")
    peak = plan_memory(planned).peak("device")[1]
    exactly = replace(planned, hardware=replace(planned.hardware, memory=peak + planned.hardware.reserved))
    assert fits(exactly)
    short = replace(planned, hardware=replace(planned.hardware, memory=peak - 1 + planned.hardware.reserved))
    assert not fits(short) and [room.fits for room in rooms(short)] == [False, True]


def test_the_error_says_by_how_much_and_at_which_moment():
    planned = job(config="base")
    moment, peak = plan_memory(planned).peak("device")
    with pytest.raises(DestructError) as caught:
        check_fits(on(planned, peak / GIB - 2))
    assert f"'{moment}'" in caught.value.problem and "2.00 more" in caught.value.problem
    assert f"takes {peak / GIB:.2f} GiB" in caught.value.problem and caught.value.exit_code == 2
    check_fits(planned)


def test_activation_checkpointing_comes_first_where_it_is_enough():
    planned = job("model.activation_checkpointing=false", config="base")
    less = job("model.activation_checkpointing=true", config="base")
    gib = plan_memory(less).peak("device")[1] / GIB + 0.01
    assert nearest(on(planned, gib)) == "set model.activation_checkpointing: true"


def test_smaller_micro_batches_are_named_with_the_accumulation_that_makes_them():
    planned = job("rollout.batch_size=512", config="base")
    changed = planned.settings.training.model_copy(update={"gradient_accumulation_steps": 16})
    smallest = replace(planned, settings=replace(planned.settings, training=changed, micro_batch=1))
    gib = plan_memory(smallest).peak("device")[1] / GIB + 0.01
    assert nearest(on(planned, gib)).startswith("set gradient_accumulation_steps to 16 in ds_configs/zero3.json")


def test_offloading_is_named_by_a_shipped_file_which_then_fits():
    """ZeRO-3 of 8 billion parameters in twice over on one machine of small devices."""
    overrides = ["model.value.path=meta-llama/Llama-3.1-8B", "engine.deepspeed=ds_configs/zero3.json"]
    planned = on(job(*overrides, config="llama3_8b_multinode"), 44)
    said = nearest(planned)
    assert "ds_configs/zero3_offload.json" in said
    settings = load(
        ROOT / "configs" / "llama3_8b_multinode.yaml",
        [overrides[0], "engine.deepspeed=ds_configs/zero3_offload.json"],
        8,
    )
    assert fits(job_of(settings, planned.hardware, 8))


def test_files_are_named_where_a_host_holds_the_gradients_alone():
    """Offloaded to the host it would take 22 bytes of each of 9.3 billion elements besides the frozen copy."""
    planned = job("rollout.batch_size=32", config="llama3_8b_multinode", ranks=1, per_node=1)
    small = replace(planned, hardware=replace(planned.hardware, host_memory=120 * GIB))
    assert nearest(small) == "keep weights and optimizer in files as ds_configs/zero3_nvme.json does"
    half = {"offload_optimizer": Offload(device="nvme", nvme_path="/x"), "offload_param": Offload(device="cpu")}
    zero = small.settings.training.zero_optimization.model_copy(update=half)
    training = small.settings.training.model_copy(update={"zero_optimization": zero})
    tight = replace(small.hardware, host_memory=80 * GIB)  # 17 of weights are too much
    halved = replace(small, settings=replace(small.settings, training=training), hardware=tight)
    assert not fits(halved) and nearest(halved) == nearest(small)
    filed = job("rollout.batch_size=32", "engine.deepspeed=ds_configs/zero3_nvme.json",
                config="llama3_8b_multinode", ranks=1, per_node=1)  # fmt: skip
    assert fits(replace(filed, hardware=small.hardware))


def test_several_changes_together_then_more_devices_then_none():
    planned = job("engine.deepspeed=ds_configs/zero3.json", config="llama3_8b_multinode", ranks=8)
    together = nearest(on(planned, 12))
    assert together.count(";") >= 2 and "rollout.gather: layers" in together
    tiny = on(planned, 0.5)
    assert nearest(tiny).startswith("no setting fits, not even on 1024 devices")


def test_more_devices_are_named_where_only_they_help():
    """FSDP keeps optimizer and weights on the device; a batch of 2048 divides by all powers of two up to 256."""
    planned = job("engine.backend=fsdp", "rollout.batch_size=2048", "rollout.gather=layers", config="base")
    peak = plan_memory(planned).peak("device")[1] / GIB
    said = nearest(on(planned, 0.55 * peak))
    assert said.startswith("take ") and "devices" in said


@pytest.mark.parametrize(
    ("name", "hardware", "ranks"),
    [
        ("local", "cpu", 2),
        ("per_position", "cpu", 2),
        ("five_sources", "h100", 8),
        ("finetune", "h100", 1),
        ("base", "h100", 8),
        ("base", "a100", 8),
        ("llama3_8b_multinode", "h100", 16),
    ],
)
def test_shipped_configs_fit_the_machines_that_they_are_for(name, hardware, ranks):
    check_fits(job(config=name, hardware=hardware, ranks=ranks))


def test_the_whole_copies_of_a_checkpoint_lie_on_one_rank_of_a_machine():
    """Each of 8 ranks has its own part of the host; the first one collects 2 bytes of 1.24 billion elements besides."""
    planned = job(config="base")
    memory = plan_memory(planned)
    host = next(room for room in rooms(planned) if room.place == "host")
    assert host.moment == "checkpoint" and host.given == 8 * planned.hardware.host_memory
    assert host.asked == 8 * memory.resident("host") + 2 * planned.policy.parameters


def test_a_host_that_is_too_small_is_relieved_by_leaving_the_offloading_out():
    planned = job(config="llama3_8b_multinode", ranks=16)
    on_device = job("engine.deepspeed=ds_configs/zero3.json", config="llama3_8b_multinode", ranks=16)
    needed = next(room.asked for room in rooms(on_device) if room.place == "host")
    small = replace(planned, hardware=replace(planned.hardware, host_memory=1.05 * needed / 8))
    assert nearest(small) == "leave offload_optimizer and offload_param out of ds_configs/zero3_offload.json"


def test_the_nearest_accumulation_comes_first():
    """Micro-batches of 16: 8 rollouts are tried before 1."""
    planned = job("rollout.batch_size=1024", config="base")
    training = planned.settings.training.model_copy(update={"gradient_accumulation_steps": 4})
    half = replace(planned, settings=replace(planned.settings, training=training, micro_batch=8))
    gib = plan_memory(half).peak("device")[1] / GIB + 0.01
    assert nearest(on(planned, gib)) == "set gradient_accumulation_steps to 4 in ds_configs/zero3.json"


def test_more_devices_come_with_the_batch_that_they_divide():
    planned = job("engine.backend=fsdp", "rollout.gather=layers", config="base")
    peak = plan_memory(planned).peak("device")[1] / GIB
    said = nearest(on(planned, 0.55 * peak))
    devices, batch = re.search(r"take (\d+) devices with rollout.batch_size: (\d+)", said).groups()
    job("engine.backend=fsdp", f"rollout.batch_size={batch}", config="base", ranks=int(devices))  # is accepted
