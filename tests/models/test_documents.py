"""Documents in one row, told apart by positions alone, against each document read by itself."""

import pytest
import torch
from torch import Tensor
from transformers import FalconConfig, GPT2Config, LlamaConfig, MistralConfig, OPTConfig
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from destruct.config.model import PolicyShape
from destruct.errors import DestructError
from destruct.models import documents
from destruct.models.documents import body_states, check_documents
from destruct.models.policy import PolicyNetwork, build_policy
from destruct.models.value import build_value

V, T = 40, 11
SHAPE = PolicyShape(
    hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, initializer_range=0.3
)
SPANS = [[(0, 4), (4, 5), (5, 11)], [(0, 11)], [(0, 2), (2, 3), (3, 4), (4, 11)]]
POSITIONS = torch.tensor([[c for a, b in row for c in range(b - a)] for row in SPANS])
TOKENS = torch.randint(0, V, (3, T), generator=torch.Generator().manual_seed(0))


def alone(body, tokens: Tensor) -> Tensor:
    """(3 * T, H): each document by a call of its own, which knows of no other."""
    parts = [body_states(body, tokens[row : row + 1, a:b]) for row, spans in enumerate(SPANS) for a, b in spans]
    return torch.cat(parts)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_a_document_in_a_row_of_several_is_read_as_if_it_were_alone(attention):
    """Policy and value; float64, in which nothing but rounding is left.  The softmax of `eager` is in float32."""
    bound = {"atol": 1e-12 if attention == "sdpa" else 1e-5, "rtol": 0}
    policy = build_policy(SHAPE, V, torch.float64, 1, "chunked", attention)
    value = build_value(SHAPE, V, torch.float64, 2, attention)
    for body in (policy.body, value.body):
        want = alone(body, TOKENS)
        torch.testing.assert_close(body_states(body, TOKENS, POSITIONS), want, **bound)
        assert not torch.allclose(body_states(body, TOKENS), want, atol=0.1), "without positions they see each other"
    rows = torch.arange(3 * T)
    torch.testing.assert_close(value(TOKENS, rows, POSITIONS), value.head(alone(value.body, TOKENS)), **bound)
    want = policy.head.logits(alone(policy.body, TOKENS))
    torch.testing.assert_close(policy(TOKENS, rows, None, POSITIONS), want, **bound)


@torch.no_grad()
def test_what_stands_in_another_document_does_not_change_a_bit():
    for dtype in (torch.float32, torch.bfloat16):
        body = build_policy(SHAPE, V, dtype, 1, "chunked").body
        other = TOKENS.clone()
        other[0, :5] = (other[0, :5] + 7) % V
        before, after = (body_states(body, tokens, POSITIONS).view(3, T, -1) for tokens in (TOKENS, other))
        assert torch.equal(before[0, 5:], after[0, 5:]) and torch.equal(before[1:], after[1:])
        assert not torch.equal(before[0, :5], after[0, :5])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_all_rows_laid_end_to_end_are_read_like_rows_of_a_batch(attention, monkeypatch):
    """The layout that flash_attention_2 is given, by kinds of attention that look for documents by the same rule.

    The softmax of `eager` is in float32.
    """
    body = build_policy(SHAPE, V, torch.float64, 1, "chunked", attention).body
    batched, shapes = body_states(body, TOKENS, POSITIONS), []
    monkeypatch.setattr(documents, "SEES_ONE_ROW", {body.config._attn_implementation})
    body.register_forward_pre_hook(
        lambda _, args, named: shapes.append({k: tuple(named[k].shape) for k in ("input_ids", "position_ids")}),
        with_kwargs=True,
    )
    tolerance = {"sdpa": 1e-12, "eager": 1e-5}[attention]
    torch.testing.assert_close(body_states(body, TOKENS, POSITIONS), batched, atol=tolerance, rtol=0)
    assert shapes == [{"input_ids": (1, 3 * T), "position_ids": (1, 3 * T)}]
    nothing = torch.zeros(0, T, dtype=torch.int64)
    assert body_states(body, nothing, nothing).shape == (1, 32)


def test_checkpointed_layers_keep_documents_apart_in_the_backward_too():
    gradients = []
    for checkpointing in (False, True):
        network = build_policy(SHAPE, V, torch.float64, 1, "chunked", checkpointing=checkpointing)
        network(TOKENS, torch.arange(3 * T), None, POSITIONS).square().sum().backward()
        gradients.append([p.grad for p in network.parameters()])
    network = build_policy(SHAPE, V, torch.float64, 1, "chunked")
    network.head.logits(alone(network.body, TOKENS)).square().sum().backward()
    for plain, saving, p in zip(*gradients, network.parameters(), strict=True):
        torch.testing.assert_close(saving, plain, atol=0, rtol=0)
        torch.testing.assert_close(saving, p.grad, rtol=1e-10, atol=1e-10)


TINY = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=V)
CPU = torch.device("cpu")


def network_of(config, dtype: torch.dtype = torch.float32) -> PolicyNetwork:
    torch.manual_seed(0)
    return PolicyNetwork(AutoModelForCausalLM.from_config(config, dtype=dtype), "chunked").eval()


@torch.no_grad()
def test_learned_positions_begin_again_with_each_document():
    """Rotary ones are relative: of them a shift of a whole document does not show."""
    body = network_of(GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=V), torch.float64).body
    torch.testing.assert_close(body_states(body, TOKENS, POSITIONS), alone(body, TOKENS), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(intermediate_size=64, **TINY),
        MistralConfig(intermediate_size=64, num_key_value_heads=1, sliding_window=4, **TINY),
    ],
)
def test_models_whose_masks_heed_positions_pass(config):
    network = network_of(config)
    check_documents("model.policy", network, lambda tokens, rows, where: network(tokens, rows, None, where), CPU)


@pytest.mark.parametrize(
    "config",
    [
        OPTConfig(ffn_dim=64, word_embed_proj_dim=32, **TINY),
        FalconConfig(alibi=True, **TINY),
    ],
)
def test_a_model_whose_documents_see_each_other_is_refused(config):
    network = network_of(config)
    with pytest.raises(DestructError, match=r"model.policy.path: \w+ lets a document see the one before it in a row"):
        check_documents("model.policy", network, lambda tokens, rows, where: network(tokens, rows, None, where), CPU)
