"""Seconds of an update worked by hand, each bound by turn."""

from dataclasses import replace

import pytest

from destruct.planning.collectives import plan_collectives
from destruct.planning.disk import plan_disk
from destruct.planning.duration import LAUNCH, assumptions, collective_seconds, plan_duration, share_on_disk
from destruct.planning.fitting import rooms
from destruct.planning.job import Job
from destruct.planning.memory import plan_memory
from tests.planning.planned import job


def phase(planned: Job, name: str):
    return next(each for each in plan_duration(planned) if each.name == name)


def test_decoding_waits_for_the_launches_of_16_layers_a_token():
    """256 tokens, 1 ms a layer; reading 2.47 GB of weights takes 1.05 ms of 2.345 TB/s."""
    found = phase(job(config="base"), "generate")
    assert found.launches == pytest.approx(256 * 16 * LAUNCH) == found.seconds and found.bound == "launches"
    assert found.memory == pytest.approx(256 * 2.4716e9 / (0.7 * 3.35e12), rel=0.1)


def test_the_arithmetic_of_an_update_is_six_times_the_weights_times_the_tokens_and_eight_with_checkpointing():
    """Layers of 0.97 billion elements, on one GPU 16 passes of 32 sequences of 512 tokens of the policy and half of
    the value network's; the head's 2 x 0.26 billion on 8,192 rows; attention is some percent."""
    tokens, layers, head = 16 * 16 * 512, 0.973e9, 0.2627e9
    by_hand = 8 * layers * (2 * tokens + tokens) + 8 * head * 16 * 16 * 512
    found = phase(job(config="base", ranks=1), "update")
    assert found.arithmetic == pytest.approx(by_hand / (0.4 * 989e12), rel=0.08) and found.bound == "arithmetic"
    plain = phase(job("model.activation_checkpointing=false", config="base", ranks=1), "update")
    # The early stop's pass is not recomputed.
    assert plain.arithmetic / found.arithmetic == pytest.approx(0.75, abs=0.02)


def test_a_ring_takes_its_bytes_over_the_bandwidth_and_a_hop_from_rank_to_rank_for_each_call():
    planned = job(config="base", ranks=16)
    call = next(call for call in plan_collectives(planned) if call.kind == "reduce-scatter")
    by_hand = call.bytes * 15 / 16 / (0.8 * 400e9) + call.calls * 15 * 3e-6
    assert collective_seconds(planned, call) == pytest.approx(by_hand)


def test_adam_on_the_host_reads_and_writes_there():
    """Stepping 8 billion and 1.2 billion elements on 16 ranks 4 times: 34 bytes each at 40 GB/s."""
    planned = job(config="llama3_8b_multinode", ranks=16)
    elements = (planned.policy.parameters + planned.value.parameters) / 16 * 4
    assert phase(planned, "update").memory == pytest.approx(34 * elements / 40e9)


FILES = "engine.deepspeed=ds_configs/zero3_nvme.json"


def with_host(planned: Job, size: float) -> Job:
    """The same on machines of eight devices whose hosts have so many bytes."""
    return replace(planned, hardware=replace(planned.hardware, host_memory=size / 8))


def test_files_are_read_in_every_pass_and_read_and_written_in_every_step_at_a_machines_bandwidth():
    """34 bytes of an element in each of 4 steps; 2 of weights in a forward and in a backward of 8 micro-batches, in
    each of 8 micro-batches that score, in each that measures the KL, and once to fill the replica."""
    overrides = ["rollout.gather=layers"], []
    layers, planned = (with_host(job(FILES, *each, config="llama3_8b_multinode"), 1) for each in overrides)
    hosted = job(config="llama3_8b_multinode")
    both, policy = planned.policy.parameters + planned.value.parameters, planned.policy.parameters

    def more(name: str) -> float:
        return phase(planned, name).memory - phase(hosted, name).memory

    def seconds(size: float) -> float:  # through the disk, and over the link of each of 8 devices, as from memory
        return size / 5e9 + size / 8 / 40e9

    assert more("update") == pytest.approx(34 * 4 * both / 5e9 + seconds(2 * 2 * 8 * both))
    assert more("score") == pytest.approx(seconds(2 * 8 * both))
    assert more("kl") == pytest.approx(seconds(2 * 8 * policy))
    assert more("generate") == pytest.approx(seconds(2 * policy))
    anew = phase(layers, "generate").memory - phase(planned, "generate").memory
    assert anew == pytest.approx(seconds(2 * policy * (planned.settings.config.rollout.response_tokens - 1)))
    assert any("5 GB/s, through which goes the 100% of the files" in line for line in assumptions(planned))


def test_what_a_hosts_memory_has_room_for_does_not_go_through_the_disk():
    """Beside what the host holds anyway there is room for none of the files, for half of them, for all."""
    planned = job(FILES, config="llama3_8b_multinode")
    asked, files = rooms(planned)[1].asked, 8 * plan_memory(planned).resident("files")
    shares = [share_on_disk(with_host(planned, asked + share * files)) for share in (0, 0.5, 2)]
    assert shares == pytest.approx([1, 0.5, 0])
    assert share_on_disk(job(config="llama3_8b_multinode")) == 0


def test_checkpoints_of_a_day_are_those_of_the_interval_and_of_the_ends_of_epochs_apart():
    """At 864 s an update 100 are made in a day: every 50 and every 200 are 2; every 30 and every 100 are 4.33."""
    both = plan_disk(job(config="base"), 864.0)
    assert both.per_day == pytest.approx(2 * both.checkpoint)
    apart = plan_disk(job("run.checkpoint_every=30", "run.updates_per_epoch=100", config="base"), 864.0)
    assert apart.per_day == pytest.approx((100 / 30 + 1) * apart.checkpoint)
    unknown = plan_disk(job("run.checkpoint_every=0", "run.updates_per_epoch=null", config="base"), 864.0)
    assert unknown.per_day is None
