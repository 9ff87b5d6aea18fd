"""One token at every position of the data's own text: what is drawn, how it is laid out, what it is worth."""

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from destruct.batch import PromptBatch, RolloutBatch
from destruct.config.model import PolicyShape
from destruct.engine.topology import Topology
from destruct.models.policy import build_policy, llama_config
from destruct.ops.rows import LogitMap
from destruct.ppo.advantages import compute_gae
from destruct.rollout import per_position
from destruct.rollout.per_position import draw_everywhere, draw_tokens
from destruct.rollout.sampling import inverse_cdf
from destruct.rollout.score import policy_inputs

V, P, R = 40, 3, 6
SHAPE = PolicyShape(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, initializer_range=0.4
)


@pytest.fixture(scope="module")
def replica():
    return build_policy(SHAPE, V, torch.float32, 0, "chunked")


def prompts(n: int) -> PromptBatch:
    windows = torch.randint(0, V, (n, P + R), generator=torch.Generator().manual_seed(n))
    return PromptBatch.full(0, P, windows, torch.zeros(n, dtype=torch.int64), torch.arange(n))


def texts(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows and positions."""
    batch = prompts(n)
    return batch.windows, batch.positions


@torch.no_grad()
def test_each_token_is_drawn_from_the_distribution_after_the_true_prefix(replica):
    """Against a plain transformers model that reads one prefix at a time."""
    plain = LlamaForCausalLM._from_config(llama_config(SHAPE, V))
    plain.load_state_dict({n.removeprefix("lm."): p for n, p in replica.named_parameters()}, strict=False)
    (windows, positions), u = texts(4), torch.from_numpy(np.random.default_rng(0).random((4, R)))
    drawn = draw_tokens(replica, windows, positions, u, 0.7)
    for row in range(4):
        for t in range(R):
            logits = plain(windows[row : row + 1, : P + t]).logits[:, -1]
            assert inverse_cdf(logits, 0.7, u[row, t][None]).item() == drawn[row, t]
    assert (drawn != windows[:, P:]).any()


def test_the_chunks_of_logits_change_nothing(replica, monkeypatch):
    (windows, positions), u = texts(5), torch.from_numpy(np.random.default_rng(1).random((5, R)))
    whole = draw_tokens(replica, windows, positions, u, 1.0)
    monkeypatch.setattr(per_position, "LOGITS_AT_ONCE", 7 * V)
    assert torch.equal(draw_tokens(replica, windows, positions, u, 1.0), whole)


def test_a_model_that_scales_its_logits_draws_from_the_scaled_ones(replica, monkeypatch):
    """Twice the logits are half the temperature."""
    (windows, positions), u = texts(5), torch.from_numpy(np.random.default_rng(1).random((5, R)))
    want = draw_tokens(replica, windows, positions, u, 0.35)
    monkeypatch.setattr(replica.head, "logit_map", LogitMap(scale=2.0))
    assert torch.equal(draw_tokens(replica, windows, positions, u, 0.7), want)


def test_every_position_counts_none_stops_and_the_networks_read_the_text_itself(replica):
    alone = Topology(0, 1, torch.device("cpu"))
    batch = prompts(4)
    rollouts = draw_everywhere(replica, batch, alone, seed=5, temperature=1.0)
    assert rollouts.mask.all() and not rollouts.stopped.any()
    assert torch.equal(rollouts.tokens, batch.windows)
    again = draw_everywhere(replica, batch.select(torch.tensor([2, 0])), alone, seed=5, temperature=1.0)
    assert torch.equal(again.responses, rollouts.responses[[2, 0]]), "addressed by sample, not by place"


def test_ptx_rows_are_the_states_of_the_response_rows_with_the_texts_own_tokens():
    """P = 3, T = 9: states 2 to 7 of both rows, once for the drawn tokens and once for the true ones."""
    batch = prompts(2)
    drawn = (batch.windows[:, P:] + 1) % V
    nothing = torch.zeros(2, dtype=torch.bool)
    rollouts = RolloutBatch(batch, drawn, torch.ones(2, R, dtype=torch.bool), nothing, teacher_forced=True)
    inputs = policy_inputs(rollouts, temperature=0.5, ptx=True)
    states = [*range(2, 8), *range(11, 17)]
    assert torch.equal(inputs.tokens, batch.windows), "one sequence serves both"
    assert inputs.rows.tolist() == states * 2
    assert inputs.targets.tolist() == [*drawn.flatten().tolist(), *batch.windows[:, P:].flatten().tolist()]
    assert inputs.temperature.tolist() == [0.5] * 12 + [1.0] * 12
    assert inputs.is_response.tolist() == [True] * 12 + [False] * 12
    empty = policy_inputs(rollouts.select(torch.zeros(0, dtype=torch.int64)), 1.0, ptx=True)
    assert len(empty.rows) == 0 and len(empty.tokens) == 0


def test_with_gamma_0_an_advantage_is_the_reward_less_the_value():
    rewards, values = torch.tensor([[1.0, 0.0, 1.0]]), torch.tensor([[0.25, 0.5, 2.0]])
    returns, advantages = compute_gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), gamma=0.0, lam=0.95)
    assert advantages.tolist() == [[0.75, -0.5, -1.0]]
    assert torch.equal(returns, rewards)
