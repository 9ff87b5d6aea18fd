"""The exact KL in an update, against two plain transformers models."""

import dataclasses

import pytest
import torch
from torch.distributions import Categorical, kl_divergence
from transformers import LlamaForCausalLM

from destruct.batch import TrainBatch
from destruct.engine.single import SingleFrozen
from destruct.models.policy import build_policy, llama_config
from destruct.ops.rows import KeepStates, LossCoefficients, ScoreRows
from destruct.ppo.update import accumulate
from destruct.rollout.score import policy_inputs
from tests.ppo.rollouts import (
    ALONE,
    FLOAT32,
    LENGTHS,
    SHAPE,
    TAU,
    P,
    V,
    engines,
    make_batch,
    packed,
    settings,
)


@pytest.fixture
def batch() -> TrainBatch:
    return make_batch()


def test_the_exact_kl_is_that_of_two_plain_models_at_the_sampling_temperature(batch):
    """KL(policy || reference) over the vocabulary, on response tokens alone, from the reference's states and head."""
    policy, value = engines(build_policy(SHAPE, V, torch.float32, 1, "chunked"))
    frozen = SingleFrozen(build_policy(SHAPE, V, torch.float32, 5, "chunked"))
    plain = []
    for engine in (policy, frozen):
        lm = LlamaForCausalLM._from_config(llama_config(SHAPE, V), dtype=torch.float32)
        lm.load_state_dict({n.removeprefix("lm."): p for n, p in engine.module.named_parameters()}, strict=False)
        plain.append(lm.double())
    rollouts, mask = batch.scored.rollouts, batch.scored.rollouts.mask
    p, q = (Categorical(logits=(lm(rollouts.tokens).logits[:, P - 1 : -1] / TAU)[mask]) for lm in plain)
    kl = kl_divergence(p, q).mean()
    kl.backward()

    def with_states(train: TrainBatch) -> TrainBatch:
        inputs = policy_inputs(train.scored.rollouts, TAU, ptx=False)
        request = KeepStates(ScoreRows(inputs.targets, inputs.temperature))
        states = frozen(inputs.tokens, inputs.rows, request).hidden
        scored = dataclasses.replace(train.scored, reference_states=states)
        return TrainBatch(scored, torch.zeros_like(train.advantages), train.returns)

    minibatch = packed(batch)[0].map(with_states)
    exact = LossCoefficients(clip_low=0.2, clip_high=0.2, kl_coef=1.0, kl="exact", entropy_coef=0.0)
    tally = accumulate(policy, value, minibatch, exact, settings(ptx_coef=0.0), ALONE.device, frozen.head())
    sums, _ = tally.over_ranks(ALONE)
    assert sums["kl_reference_exact"] / LENGTHS.sum() == pytest.approx(kl.item(), rel=1e-5)
    expected = dict(plain[0].named_parameters())
    for name, parameter in policy.module.named_parameters():
        want = expected[name.removeprefix("lm.")].grad
        assert (parameter.grad.double() - want).norm() <= FLOAT32 * want.norm(), name
