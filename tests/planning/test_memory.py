"""Memory by hand, by invariants, and by DeepSpeed's own defaults."""

import json
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
    the frozen copy's 2 on the host, rounded up to powers of two, which most already are; a whole copy samples."""
    n = 1_235_814_400
    memory = plan_memory(planned.job(config="base"))
    policy = resident(memory, "policy")
    for what, size in (("weights", 2), ("master weights", 4), ("optimizer", 8), ("gradients", 4)):
        assert policy[f"{what}, device"] == size * n // 8
    pinned = resident(memory, "frozen")
    assert pinned.keys() == {"weights, host"} and 2 * n // 8 <= pinned["weights, host"] < 1.1 * 2 * n // 8
    assert resident(memory, "replica") == {"weights, device": 2 * n}


@pytest.mark.parametrize(
    ("json", "on_device", "on_host"),
    [
        ("zero3", {"weights", "master weights", "optimizer", "gradients", "bucket"}, set()),
        ("zero3_offload", {"weights", "bucket"}, {"master weights", "optimizer", "gradients"}),
        ("zero3_offload_all", {"bucket"}, {"weights", "master weights", "optimizer", "gradients"}),
        ("zero3_nvme", {"bucket"}, {"gradients"}),
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


def at(memory: Memory, moment: str, *whats: str) -> int:
    return sum(part.bytes for part in memory.parts if part.moment == moment and part.what in whats)


def test_the_warm_up_learns_from_whole_windows_in_micro_batches_of_its_own():
    """64 rollouts on 2 ranks in 2 micro-batches: 16 windows; in PPO 8 rollouts and 8 windows of PTX: the same tokens.
    With 4 minibatches they are 4 and 4, and the warm-up's stay 16.  It asks for the states of all tokens but a row's
    last one."""
    two, four = (planned.job(f"ppo.minibatches={count}", ranks=2) for count in (2, 4))
    kept = [
        [at(plan_memory(each), f"{moment}policy backward", "activations") for moment in ("warm-up ", "")]
        for each in (two, four)
    ]
    assert kept[0][0] == kept[1][0] > kept[0][1] == 2 * kept[1][1]
    none = plan_memory(planned.job("warmup.lm_updates=0", ranks=2))
    assert not any("warm-up" in part.moment for part in none.parts)


def test_an_exact_kl_holds_the_references_head_and_states_during_the_update():
    """32 rollouts a rank of 32 response tokens, 128 wide, in bfloat16."""
    exact = planned.job("kl.in_loss=exact", "kl.in_reward=false", ranks=2)
    memory = plan_memory(exact)
    for moment in ("policy backward", "value step"):
        assert at(memory, moment, "head") == 2 * exact.policy.embedding
        assert at(memory, moment, "hidden states") == 2 * 128 * 32 * 32
    assert at(memory, "policy score", "head") == 0


def test_gradients_of_an_offloaded_optimizer_stay_on_the_device_at_stage_2_and_lie_on_the_host_at_3(tmp_path):
    document = json.loads((planned.ROOT / "ds_configs" / "zero3_offload.json").read_text())
    document["zero_optimization"]["stage"] = 2
    (tmp_path / "zero2_offload.json").write_text(json.dumps(document))
    at_2 = planned.job(f"engine.deepspeed={tmp_path / 'zero2_offload.json'}")
    shard = -(-at_2.policy.parameters // 8)
    memory = plan_memory(at_2)
    assert at(memory, "policy backward", "gradients") == 4 * (shard + -(-at_2.value.parameters // 8))
    assert resident(memory, "policy")["gradients, host"] == 4 * shard
    at_3 = plan_memory(planned.job("engine.deepspeed=ds_configs/zero3_offload.json"))
    assert at(at_3, "policy backward", "gradients") == 0
    assert resident(at_3, "policy")["gradients, host"] == 8 * shard


def test_in_files_lie_18_bytes_of_an_element_in_shards_and_4_of_gradients_stay_on_the_host():
    """Weights 2, masters 4, moments 8, gradients of the step 4; on a CPU as beside a GPU."""
    for hardware in ("h100", "cpu"):
        planned_job = planned.job("engine.deepspeed=ds_configs/zero3_nvme.json", hardware=hardware)
        memory = plan_memory(planned_job)
        shards = [-(-net.parameters // 8) for net in (planned_job.policy, planned_job.value)]
        assert memory.resident("files") == 18 * sum(shards)
        assert resident(memory, "policy")["gradients, host"] == 4 * shards[0]
        assert not any(part.place == "files" for part in memory.parts if part.network == "frozen")


def test_float32_weights_are_their_own_masters_at_stage_3(tmp_path):
    document = json.loads((planned.ROOT / "ds_configs" / "zero3.json").read_text())
    document["bf16"]["enabled"] = False
    (tmp_path / "float32.json").write_text(json.dumps(document))
    found = resident(plan_memory(planned.job(f"engine.deepspeed={tmp_path / 'float32.json'}")), "policy")
    assert "master weights, device" not in found and found["weights, device"] == found["gradients, device"]


def test_an_untied_head_larger_than_a_bucket_is_reduced_while_all_activations_are_there():
    """128,256 x 4,096 elements, 6 bytes each: the gradient, and the same in float32."""
    memory = plan_memory(planned.job("engine.deepspeed=ds_configs/zero3.json", config="llama3_8b_multinode", ranks=16))
    assert at(memory, "policy first reduction", "reduction") == 6 * 128_256 * 4096
    activations = [at(memory, f"policy {moment}", "activations") for moment in ("first reduction", "backward")]
    assert activations[0] == activations[1]
