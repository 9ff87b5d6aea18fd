"""The last layer on some rows against transformers' own layer on all: states and gradients, of every known kind."""

import copy

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from destruct.models.documents import body_states
from destruct.models.last_layer import let_read_rows_alone, reads_rows_alone
from destruct.models.policy import PolicyNetwork

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 40,
    "initializer_range": 0.3,
}
KINDS = (LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config)
TOKENS = torch.randint(0, 40, (3, 9), generator=torch.Generator().manual_seed(0))
ROWS = torch.tensor([4, 5, 6, 13, 14, 26])


def bodies(kind, checkpointing: bool = False):
    torch.manual_seed(0)
    plain = AutoModel.from_config(kind(**SIZES), dtype=torch.float64).train()
    if checkpointing:
        plain.gradient_checkpointing_enable({"use_reentrant": False})
    ours = copy.deepcopy(plain)
    let_read_rows_alone(ours)
    assert reads_rows_alone(ours) and not reads_rows_alone(plain)
    return ours, plain


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_states_and_gradients_are_those_of_the_whole_layer(kind, checkpointing):
    ours, plain = bodies(kind, checkpointing)
    got, want = body_states(ours, TOKENS, rows=ROWS), body_states(plain, TOKENS, rows=ROWS)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    weight = torch.randn(want.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (got * weight).sum().backward()
    (want * weight).sum().backward()
    for (name, p), other in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, other.grad, rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_the_feed_forward_part_reads_the_rows_alone(kind):
    ours, _ = bodies(kind)
    seen = []
    for layer in ours.layers:
        layer.mlp.register_forward_hook(lambda module, inputs, output: seen.append(tuple(inputs[0].shape)))
    body_states(ours, TOKENS, rows=ROWS)
    assert seen == [(3, 9, 32), (3, 9, 32), (6, 32)]
    seen.clear()
    body_states(ours, TOKENS, rows=ROWS[:0])
    assert seen[-1] == (0, 32)


@torch.no_grad()
def test_without_rows_and_in_a_copy_it_is_the_layer_it_was():
    ours, plain = bodies(LlamaConfig)
    assert torch.equal(body_states(ours, TOKENS), body_states(plain, TOKENS))
    assert type(ours.layers[-1]).__name__ == "LlamaDecoderLayer"
    again = copy.deepcopy(ours)
    again.layers[-1].mlp.down_proj.weight.zero_()
    assert not torch.equal(body_states(again, TOKENS, rows=ROWS), body_states(ours, TOKENS, rows=ROWS))


@torch.no_grad()
def test_a_model_of_another_kind_reads_all_rows_and_answers_the_same():
    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=40)
    network = PolicyNetwork(AutoModelForCausalLM.from_config(config), "chunked").eval()
    assert not reads_rows_alone(network.body)
    assert torch.equal(body_states(network.body, TOKENS, rows=ROWS), body_states(network.body, TOKENS)[ROWS])
