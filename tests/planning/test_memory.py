"""Memory by hand, by invariants, and by DeepSpeed's own defaults."""

from collections import Counter

import pytest
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from destruct.evaluation import WINDOWS_PER_FORWARD
from destruct.planning import collectives, job, sharding
from destruct.planning.memory import plan_memory
from destruct.planning.parts import ALWAYS, Memory, Part
from tests.planning import planned

GIB = 2**30


def resident(memory: Memory, network: str) -> Counter[str]:
    found: Counter[str] = Counter()
    for part in memory.parts:
        if (part.network, part.moment) == (network, ALWAYS):
            found[f"{part.what}, {part.place}"] += part.bytes
    return found


def test_defaults_are_deepspeeds():
    zero = DeepSpeedZeroConfig(stage=3)
    assert zero.prefetch_bucket_size == sharding.PREFETCH_BUCKET
    assert zero.max_live_parameters == sharding.MAX_LIVE
    assert zero.sub_group_size == sharding.SUB_GROUP
    assert zero.param_persistence_threshold == collectives.PERSISTENCE
    assert job.WINDOWS_PER_FORWARD == WINDOWS_PER_FORWARD


def test_llama_1b_under_zero_3_worked_by_hand():
    """1,235.8 million elements on 8 ranks: 2 bytes of weights, 4 of masters, 8 of moments, 4 of gradients in shards;
    the frozen copy's 2 on the host; a whole copy samples."""
    n = 1_235_814_400
    memory = plan_memory(planned.job(config="base"))
    policy = resident(memory, "policy")
    for what, size in (("weights", 2), ("master weights", 4), ("optimizer", 8), ("gradients", 4)):
        assert policy[f"{what}, device"] == size * n // 8
    assert resident(memory, "frozen") == {"weights, host": 2 * n // 8}
    assert resident(memory, "replica") == {"weights, device": 2 * n}


@pytest.mark.parametrize(
    ("json", "on_device", "on_host"),
    [
        ("zero3", {"weights", "master weights", "optimizer", "gradients", "bucket"}, set()),
        ("zero3_offload", {"weights", "bucket"}, {"master weights", "optimizer", "gradients"}),
        ("zero3_offload_all", {"bucket"}, {"weights", "master weights", "optimizer", "gradients"}),
        ("zero2", {"weights", "master weights", "optimizer"}, set()),
    ],
)
def test_what_a_shipped_json_offloads_is_on_the_host(json, on_device, on_host):
    found = resident(plan_memory(planned.job(f"engine.deepspeed=ds_configs/{json}.json")), "value")
    assert {name.removesuffix(", device") for name in found if name.endswith("device")} == on_device
    assert {name.removesuffix(", host") for name in found if name.endswith("host")} == on_host


def test_on_cpus_everything_lies_in_the_hosts_memory_and_a_bucket_takes_what_is_written_to():
    at_cpu = planned.job(ranks=2, hardware="cpu")
    memory = plan_memory(at_cpu)
    assert {part.place for part in memory.parts} == {"host"}
    assert resident(memory, "policy")["bucket, host"] == 4 * at_cpu.policy.parameters
    assert resident(plan_memory(planned.job()), "policy")["bucket, device"] >= 4 * at_cpu.policy.parameters


@pytest.mark.parametrize("backend", ["deepspeed", "fsdp"])
def test_twice_the_ranks_halve_the_shards_and_never_raise_the_peak(backend):
    jobs = [planned.job(f"engine.backend={backend}", ranks=w, config="base") for w in (2, 4, 8, 16)]
    memories = [plan_memory(each) for each in jobs]
    shards = [resident(memory, "policy")["optimizer, device"] for memory in memories]
    assert shards == [shards[0], shards[0] / 2, shards[0] / 4, shards[0] / 8]
    peaks = [memory.peak("device")[1] for memory in memories]
    assert peaks == sorted(peaks, reverse=True)


def test_every_moment_holds_all_that_is_there_always():
    memory = plan_memory(planned.job(config="base"))
    moments = memory.moments("device")
    assert min(moments.values()) >= memory.resident("device")
    moment, peak = memory.peak("device")
    assert moments[moment] == peak == sum(part.bytes for part in memory.at("device", moment))


def test_parts_worked_by_hand():
    """10 always, 5 and 3 in one moment, 7 in another, and 4 of the host's."""
    memory = Memory(
        (
            Part("a", "w", 10),
            Part("a", "x", 5, "one"),
            Part("b", "y", 3, "one"),
            Part("b", "z", 7, "two"),
            Part("b", "v", 4, "two", "host"),
        )
    )
    assert memory.moments("device") == {"one": 18, "two": 17} and memory.peak("device") == ("one", 18)
    assert memory.peak("host") == ("two", 4) and memory.resident("host") == 0


def test_sampling_layer_by_layer_needs_no_copy_and_checkpointing_keeps_less():
    whole, layers = (plan_memory(planned.job(f"rollout.gather={how}", config="base")) for how in ("once", "layers"))
    n = planned.job(config="base").policy.parameters
    assert whole.resident("device") - layers.resident("device") == 2 * n
    plain = planned.job("model.activation_checkpointing=false", config="base")
    assert plan_memory(plain).peak("device")[1] > whole.peak("device")[1] + 2 * GIB
