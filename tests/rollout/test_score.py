"""Scoring: where the reward lands, what the penalty takes, and whitening over everything."""

import pytest
import torch
from transformers import LlamaForCausalLM

from destruct.batch import PromptBatch, RewardedBatch, RolloutBatch, ScoredBatch
from destruct.config.deepspeed import Optimizer
from destruct.config.model import PolicyShape
from destruct.engine.single import SingleEngine, SingleFrozen
from destruct.engine.topology import Topology
from destruct.minibatch import Minibatch
from destruct.models.policy import build_policy, llama_config
from destruct.models.value import build_value
from destruct.rollout.rewards import REWARDS, Reward, RewardContext
from destruct.rollout.score import ScoreSettings, policy_inputs, response_logprobs, score, with_advantages

V, P, R = 40, 4, 5
SHAPE = PolicyShape(
    hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, initializer_range=0.3
)
ALONE = Topology(0, 1, torch.device("cpu"))


def rollouts(lengths: list[int], teacher_forced: bool = False) -> RolloutBatch:
    b = len(lengths)
    g = torch.Generator().manual_seed(b)
    windows = torch.randint(0, V, (b, P + R), generator=g)
    mask = torch.arange(R) < torch.tensor(lengths)[:, None]
    responses = torch.where(mask, torch.randint(2, V, (b, R), generator=g), 1)
    prompts = PromptBatch.full(0, P, windows, torch.zeros(b, dtype=torch.int64), torch.arange(b))
    return RolloutBatch(prompts, responses, mask, torch.zeros(b, dtype=torch.bool), teacher_forced)


def scored_of(batch: RolloutBatch, term: str, networks, *settings, weight: float = 1.0) -> ScoredBatch:
    reward = Reward({term: weight}, {term: REWARDS[term]}, {}, RewardContext(2, None))
    (rewarded,) = reward([Minibatch((batch,), 0, 0, 0)], ALONE)
    return score(rewarded, *networks, ScoreSettings(*settings)).micro_batches[0]


@pytest.fixture(scope="module")
def networks():
    policy = SingleEngine(build_policy(SHAPE, V, torch.float32, 1, "chunked"), Optimizer(), 1, 1.0)
    frozen = SingleFrozen(build_policy(SHAPE, V, torch.float32, 0, "chunked"))
    value = SingleEngine(build_value(SHAPE, V, torch.float32, 3), Optimizer(), 1, 1.0)
    torch.nn.init.normal_(value.module.head.weight, std=0.5, generator=torch.Generator().manual_seed(4))
    return policy, frozen, value


def test_rows_point_at_the_state_before_each_token():
    """Lengths 2 and 1 at P = 4, T = 9: states 3 and 4 of the first row, 3 of the second; then PTX, 5 states each."""
    batch = rollouts([2, 1])
    inputs = policy_inputs(batch, temperature=0.5, ptx=True)
    assert inputs.rows.tolist() == [3, 4, 12, *range(21, 26), *range(30, 35)]
    assert inputs.temperature.tolist() == [0.5] * 3 + [1.0] * 10
    responses = [batch.tokens[0, 4], batch.tokens[0, 5], batch.tokens[1, 4]]
    assert inputs.targets.tolist() == [*responses, *batch.prompts.windows[:, P:].flatten()]


def test_the_score_lands_on_the_last_real_token_and_the_penalty_on_every_one(networks):
    """Reward = weight * length / R; the k1 penalty is old logprob less reference logprob, at every sampled token."""
    batch = rollouts([5, 2, 3])
    free = scored_of(batch, "length", networks, 0.7, True, 0.0, False, weight=10.0)
    expected = torch.zeros(3, R)
    expected[0, 4], expected[1, 1], expected[2, 2] = 10.0, 4.0, 6.0
    torch.testing.assert_close(free.rewards, expected)
    taxed = scored_of(batch, "length", networks, 0.7, True, 0.3, False, weight=10.0)
    kl = free.old_logprobs - free.reference_logprobs
    assert kl.abs().max() > 0.1, "the two networks differ"
    torch.testing.assert_close(taxed.rewards, expected - 0.3 * kl)
    assert torch.equal(taxed.rewarded.score, free.rewarded.score), "the score leaves the penalty out"


@torch.no_grad()
def test_both_logprobs_are_plain_transformers_at_the_sampling_temperature_and_values_those_before_each_token(networks):
    """The KL penalty compares two distributions that were divided by the same temperature."""
    batch = rollouts([5, 2, 3])
    scored, free = (scored_of(batch, "eos", networks, 0.6, True, 0.1, exact_kl) for exact_kl in (True, False))
    for engine, got in ((networks[0], scored.old_logprobs), (networks[1], scored.reference_logprobs)):
        plain = LlamaForCausalLM._from_config(llama_config(SHAPE, V), dtype=torch.float32)
        plain.load_state_dict({n.removeprefix("lm."): p for n, p in engine.module.named_parameters()}, strict=False)
        logprobs = (plain(batch.tokens).logits[:, P - 1 : -1] / 0.6).log_softmax(-1)
        expected = logprobs.gather(2, batch.responses[:, :, None]).squeeze(2) * batch.mask
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    assert free.reference_states is None
    states = plain.model(batch.tokens).last_hidden_state[:, P - 1 : -1][batch.mask]
    torch.testing.assert_close(scored.reference_states, states, atol=1e-5, rtol=0)  # plain is the reference by now
    every = networks[2].module(batch.tokens, torch.arange(batch.tokens.numel())).view(3, P + R)
    torch.testing.assert_close(scored.old_values, every[:, P - 1 : -1] * batch.mask, atol=1e-6, rtol=0)


def test_an_empty_micro_batch_scores_nothing_and_still_calls_every_network(networks):
    batch = rollouts([5, 2]).select(torch.zeros(0, dtype=torch.int64))
    called = []
    hooks = [e.module.register_forward_hook(lambda module, *_: called.append(module)) for e in networks]
    scored = scored_of(batch, "eos", networks, 1.0, True, 0.1, True)
    for hook in hooks:
        hook.remove()
    assert scored.rewards.shape == (0, R) and scored.reference_states.shape == (0, 32)
    assert len(called) == 3


def test_padding_and_neighbours_do_not_change_a_logprob(networks):
    batch = rollouts([5, 1, 3, 2])
    together = response_logprobs(networks[0], batch, 0.9, ptx=True)
    for row in range(4):
        alone = response_logprobs(networks[0], batch.select(torch.tensor([row])), 0.9, ptx=True)
        torch.testing.assert_close(alone[0], together[row], atol=2e-6, rtol=0)


def test_advantages_are_white_over_all_micro_batches_and_returns_are_not():
    g = torch.Generator().manual_seed(1)

    def scored(lengths: list[int], shift: float) -> ScoredBatch:
        batch = rollouts(lengths)
        x = torch.randn(4, len(lengths), R, generator=g) * batch.mask
        return ScoredBatch(
            RewardedBatch(batch, x[3], x[3].sum(1), x[3].sum(1)[:, None]), x[0], x[1], x[2], (x[3] + shift) * batch.mask
        )

    minibatches = [
        Minibatch((scored([5, 2], 4.0), scored([1], -3.0)), 8, 15, 0),
        Minibatch((scored([4, 4], 0.0),), 8, 10, 0),
    ]
    done = with_advantages(minibatches, gamma=1.0, lam=1.0, topology=ALONE)
    parts = [train for minibatch in done for train in minibatch.micro_batches]
    advantages = torch.cat([t.advantages[t.scored.rollouts.mask] for t in parts])
    assert advantages.mean().item() == pytest.approx(0, abs=1e-6)
    assert advantages.std().item() == pytest.approx(1, abs=1e-5)
    for t in parts:
        to_go = t.scored.rewards.flip(1).cumsum(1).flip(1) * t.scored.rollouts.mask
        torch.testing.assert_close(t.returns, to_go)


def scored_by_hand() -> ScoredBatch:
    """Lengths 3 and 2; rewards 0, 0, 8 and 2, 4, values 2, 4, 6 and 1, 3; what lies behind them is padding."""
    batch = rollouts([3, 2])
    rewards = torch.tensor([[0.0, 0, 8, 0, 0], [2, 4, 0, 0, 0]])
    values = torch.tensor([[2.0, 4, 6, 0, 0], [1, 3, 0, 0, 0]])
    return ScoredBatch(RewardedBatch(batch, rewards, rewards[:, 0], rewards[:, :1]), rewards, rewards, values, rewards)


@pytest.mark.parametrize(
    ("gamma", "lam", "returns"),
    [
        (0.5, 0.0, [[2.0, 3, 8, 0, 0], [3.5, 4, 0, 0, 0]]),  # r + V / 2 of the next token
        (0.0, 0.5, [[0.0, 0, 8, 0, 0], [2, 4, 0, 0, 0]]),  # r alone
        (0.5, 1.0, [[2.0, 4, 8, 0, 0], [4, 4, 0, 0, 0]]),  # rewards to go, halved with each token
    ],
)
def test_returns_worked_by_hand_tell_gamma_from_lam(gamma, lam, returns):
    (done,) = with_advantages([Minibatch((scored_by_hand(),), 5, 10, 0)], gamma, lam, ALONE)
    assert done.micro_batches[0].returns.tolist() == returns
