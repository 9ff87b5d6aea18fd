"""Bytes of collectives worked by hand; tests/distributed/test_plan.py counts those of real runs."""

import pytest

from destruct.planning.collectives import Collective, plan_collectives
from destruct.planning.job import Job
from tests.planning.planned import job

ONE_EPOCH = ("ppo.epochs=1", "ppo.minibatches=2", "rollout.batch_size=64")


def by_phase(planned: Job, network: str) -> dict[tuple[str, str], float]:
    calls = [call for call in plan_collectives(planned) if call.network == network]
    return {
        (call.phase, call.kind): sum(c.bytes for c in calls if (c.phase, c.kind) == (call.phase, call.kind))
        for call in calls
    }


def test_zero_3_gathers_for_each_pass_and_reduces_each_micro_batch():
    """2 minibatches of 2 micro-batches a rank, n elements: 2 bytes each gathered once for a forward and once more for a
    backward, 4 bytes reduced; small ones stay gathered from step to step, but for the frozen copy's.  A forward that
    is not the policy's old one takes both micro-batches of a minibatch."""
    planned = job(*ONE_EPOCH, ranks=2)
    n, small = planned.policy.parameters, sum(t for t in planned.policy.tensors if t <= 100_000)
    assert by_phase(planned, "policy") == {
        ("update", "all-gather"): 2 * 2 * (n - small) * 4 + 2 * small * 2,
        ("update", "reduce-scatter"): 4 * n * 4,
        ("score", "all-gather"): 2 * (n - small) * 4,
        ("kl", "all-gather"): 2 * (n - small) * 2,
    }
    assert by_phase(planned, "frozen")["score", "all-gather"] == 2 * n * 2
    long = job(*ONE_EPOCH, "rollout.prompt_tokens=480", ranks=2)  # of 16 rollouts 8192 tokens, too many for two
    assert by_phase(long, "frozen")["score", "all-gather"] == 2 * n * 4
    assert by_phase(planned, "replica") == {("generate", "all-gather"): 2 * n}


def test_zero_2_reduces_each_micro_batch_and_gathers_after_each_step():
    planned = job(*ONE_EPOCH, "engine.deepspeed=ds_configs/zero2.json", ranks=2)
    n = planned.policy.parameters
    assert by_phase(planned, "policy") == {("update", "all-reduce"): 4 * n * 4, ("update", "all-gather"): 2 * n * 2}
    assert by_phase(planned, "replica") == {}


def test_fsdp_keeps_a_tied_weight_gathered_between_forward_and_backward():
    planned = job(*ONE_EPOCH, "engine.backend=fsdp", ranks=2)
    net = planned.policy
    root = net.embedding + net.hidden
    found = by_phase(planned, "policy")
    assert found["update", "all-gather"] == 2 * (2 * net.parameters - root) * 4
    untied = job(*ONE_EPOCH, "engine.backend=fsdp", "model.policy.tie_word_embeddings=false", ranks=2).policy
    found = by_phase(
        job(*ONE_EPOCH, "engine.backend=fsdp", "model.policy.tie_word_embeddings=false", ranks=2), "policy"
    )
    assert found["update", "all-gather"] == 2 * (2 * untied.parameters - untied.hidden) * 4


def test_the_early_stop_measures_once_more_between_epochs():
    planned = job("ppo.epochs=3", "ppo.early_stop_kl=0.1", ranks=2)
    without = job("ppo.epochs=3", "ppo.early_stop_kl=null", ranks=2)
    more = by_phase(planned, "policy")["update", "all-gather"] - by_phase(without, "policy")["update", "all-gather"]
    large = sum(size for size in planned.policy.tensors if size > 100_000)
    assert (planned.settings.config.ppo.minibatches, planned.shared_passes) == (2, 2)
    assert more == 2 * large * 2 * 2


def test_a_token_at_a_time_layer_by_layer_gathers_the_network_for_every_token():
    """The tied weight twice: as embeddings, and as the head.  Below ZeRO 3 every rank has all of them."""
    whole = job("rollout.gather=layers", "engine.deepspeed=ds_configs/zero2.json", ranks=2)
    assert by_phase(whole, "replica") == {}
    planned = job("rollout.gather=layers", ranks=2)
    net = planned.policy
    assert by_phase(planned, "replica")["generate", "all-gather"] == 2 * (net.parameters + net.embedding) * 32


def test_an_exact_kl_gathers_the_head_once_an_update():
    planned = job("kl.in_loss=exact", "kl.in_reward=false", ranks=2)
    assert by_phase(planned, "frozen")["update", "all-gather"] == 2 * planned.policy.embedding


def test_one_rank_exchanges_nothing():
    assert plan_collectives(job(ranks=1)) == []


@pytest.mark.parametrize(("kind", "sent"), [("all-gather", 75), ("reduce-scatter", 75), ("all-reduce", 150)])
def test_a_ring_of_four_sends_three_quarters_of_a_tensor_and_twice_that_to_reduce_and_spread(kind, sent):
    assert Collective("update", "policy", "x", kind, 100, 1).sent(4) == sent
