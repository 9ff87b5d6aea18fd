"""The networks: transformers' names and weights, seeds, dtypes, padding, and the empty micro-batch."""

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from destruct.batch import TokenWindows
from destruct.config.model import LlamaShape, PolicyShape
from destruct.models.policy import PolicyNetwork, build_copy, build_policy, llama_config
from destruct.models.value import build_value
from destruct.ops.rows import LossCoefficients, LossRows, PolicyLoss, ScoreRows

V = 40
BODY = LlamaShape(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, initializer_range=0.3
)
TIED = pytest.mark.parametrize("tied", [True, False])
LOSSES = pytest.mark.parametrize("loss", ["chunked", "reference"])


def shape(tied: bool = True, **changes) -> PolicyShape:
    return PolicyShape(**(BODY.model_dump() | {"tie_word_embeddings": tied} | changes))


def policy(tied: bool = True, dtype: torch.dtype = torch.float32, seed: int = 1, loss: str = "chunked", **changes):
    return build_policy(shape(tied, **changes), V, dtype, seed, loss)


def plain(network: PolicyNetwork, tied: bool) -> LlamaForCausalLM:
    """transformers' own model with the same weights; strict, so that a name that differs fails."""
    lm = LlamaForCausalLM._from_config(llama_config(shape(tied), V), dtype=next(network.parameters()).dtype)
    lm.load_state_dict(network.lm.state_dict())
    return lm


def logprobs(network: PolicyNetwork, tokens: Tensor) -> Tensor:
    """(n, T - 1) nats of each next token."""
    windows = TokenWindows.full(tokens)
    scores = network(tokens, windows.rows, ScoreRows(windows.targets, torch.ones(len(windows.targets))))
    return scores.logprobs.view(len(tokens), -1)


@TIED
def test_parameters_and_checkpoints_have_the_names_of_transformers(tied):
    network = policy(tied)
    reference = LlamaForCausalLM._from_config(llama_config(shape(tied), V), dtype=torch.float32)
    assert [n for n, _ in network.lm.named_parameters()] == [n for n, _ in reference.named_parameters()]
    assert network.lm.state_dict().keys() == reference.state_dict().keys()


@TIED
def test_head_and_embedding_are_one_parameter_when_tied_and_two_when_not(tied):
    network = policy(tied)
    head, embedding = network.lm.lm_head.weight, network.lm.model.embed_tokens.weight
    assert (head is embedding) is tied
    assert sum(p is head for p in network.parameters()) == 1
    network(torch.tensor([[3, 5]]), torch.tensor([0]), None).square().sum().backward()
    assert bool(embedding.grad[4].any()) is tied, "a token that was not read gets a gradient through the head alone"


@TIED
@LOSSES
def test_logits_and_scores_are_transformers(tied, loss):
    network = policy(tied, loss=loss)
    tokens = torch.randint(0, V, (3, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = plain(network, tied)(tokens).logits
        got = network(tokens, torch.arange(21), None).view(3, 7, V)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    chosen = expected.double().log_softmax(-1)[:, :-1].gather(2, tokens[:, 1:, None]).squeeze(2)
    torch.testing.assert_close(logprobs(network, tokens).double(), chosen, rtol=0, atol=1e-5)


@pytest.mark.parametrize("build", [policy, lambda seed: build_value(BODY, V, torch.float32, seed)])
def test_equal_seeds_give_equal_weights_whatever_was_drawn_before_and_other_seeds_others(build):
    first = build(seed=7)
    torch.randn(100)
    again, other = build(seed=7), build(seed=8)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    differs = [
        not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True) if a.dim() > 1
    ]
    assert sum(differs) >= len(differs) - 1, "all matrices but the value head, which starts at 0"


@TIED
def test_a_copy_takes_the_policys_weights_and_has_no_gradient(tied):
    network = policy(tied)
    copy = build_copy(shape(tied), V, torch.float32, "chunked")
    copy.load_state_dict(network.state_dict())
    tokens = torch.arange(10).view(2, 5)
    assert torch.equal(logprobs(copy, tokens), logprobs(network, tokens))
    assert (copy.lm.lm_head.weight is copy.lm.model.embed_tokens.weight) is tied
    assert not copy.training and not any(p.requires_grad for p in copy.parameters())


def test_a_bfloat16_model_keeps_its_rotary_frequencies_in_float32():
    """theta^(-2i/d) by hand for d = 16; in bfloat16 they would be off by up to 0.4%."""
    expected = torch.tensor([10_000.0 ** (-2 * i / 16) for i in range(8)])
    value = build_value(BODY, V, torch.bfloat16, 1)
    for network in (policy(dtype=torch.bfloat16), value):
        assert all(p.dtype == torch.bfloat16 for p in network.parameters())
        frequencies = {n: b for n, b in network.named_buffers() if n.endswith("rotary_emb.inv_freq")}
        assert len(frequencies) == 1
        (buffer,) = frequencies.values()
        assert buffer.dtype == torch.float32
        torch.testing.assert_close(buffer, expected, rtol=1e-6, atol=0)
        assert (buffer.bfloat16().float() - expected).abs().max() > 1e-4


def test_the_base_of_the_rotary_embedding_is_the_configs():
    """500^(-2i/d), d = 16."""
    network = build_policy(shape(rope_theta=500.0), V, torch.float32, 1, "chunked")
    expected = torch.tensor([500.0 ** (-2 * i / 16) for i in range(8)])
    torch.testing.assert_close(network.lm.model.rotary_emb.inv_freq, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("spread", [0.02, 0.3])
def test_the_initial_matrices_spread_by_the_initializer_range(spread):
    """Standard deviation of n normals: sd (1 +- 4 / sqrt(2n)); norms start at 1."""
    for name, p in policy(tied=False, initializer_range=spread).named_parameters():
        if p.dim() == 1:
            assert torch.equal(p, torch.ones_like(p)), name
        else:
            assert p.std().item() == pytest.approx(spread, rel=4 / (2 * p.numel()) ** 0.5), name
            assert abs(p.mean().item()) < 4 * spread / p.numel() ** 0.5, name


def test_padding_on_the_right_changes_no_real_tokens_logprob_and_no_value():
    """In float64, so that a padding of any length is told from rounding; of one length, bit for bit in float32."""
    tokens = torch.randint(0, V, (4, 6), generator=torch.Generator().manual_seed(1))
    padded = [torch.cat([tokens, torch.full((4, 5), padding)], 1) for padding in (0, 17, V - 1)]
    for dtype in (torch.float64, torch.float32):
        network, value = policy(dtype=dtype), build_value(BODY, V, dtype, 2)
        nn.init.normal_(value.head.weight, std=0.5)
        scores = [logprobs(network, each)[:, :5] for each in padded]
        values = [value(each, torch.arange(44)).view(4, 11)[:, :6] for each in padded]
        assert all(torch.equal(scores[0], other) for other in scores[1:])
        assert all(torch.equal(values[0], other) for other in values[1:])
        if dtype == torch.float64:
            torch.testing.assert_close(scores[0], logprobs(network, tokens), rtol=0, atol=1e-12)
            # The head computes in float32.
            torch.testing.assert_close(values[0], value(tokens, torch.arange(24)).view(4, 6), rtol=0, atol=1e-6)


def empty_rows() -> LossRows:
    none = torch.zeros(0)
    return LossRows(torch.zeros(0, dtype=torch.int64), none, none, none, none, none, none)


@TIED
@LOSSES
def test_no_rows_give_a_zero_loss_that_reaches_every_parameter(tied, loss):
    """A rank without rollouts takes part in the backward pass: each gradient is there, and 0."""
    network = policy(tied, loss=loss)
    coefficients = LossCoefficients(0.2, 0.2, 0.1, "k3", 0.01)
    nothing = torch.zeros(0, 9, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    output = network(*nothing, PolicyLoss(empty_rows(), coefficients))
    assert output.loss.item() == 0 and output.loss.requires_grad
    output.loss.backward()
    for name, p in network.named_parameters():
        assert p.grad is not None and not p.grad.any(), name
    value = build_value(BODY, V, torch.float32, 2)
    value(*nothing).sum().backward()
    for name, p in value.named_parameters():
        assert p.grad is not None and not p.grad.any(), name
    assert value(*nothing).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_value_network_says_0_at_the_start_and_learns_from_there(dtype):
    """The head is 0, so its own gradient is the only one of the first step: the sum of the hidden states."""
    value = build_value(BODY, V, dtype, 2)
    tokens = torch.randint(0, V, (3, 5), generator=torch.Generator().manual_seed(2))
    values = value(tokens, torch.arange(15))
    assert values.dtype == torch.float32 and not values.any()
    values.sum().backward()
    assert value.head.bias.grad.item() == 15
    with torch.no_grad():
        hidden = value.body(input_ids=tokens, use_cache=False).last_hidden_state.float().sum((0, 1))
    # bfloat16 keeps 8 bits of each gradient.
    torch.testing.assert_close(value.head.weight.grad[0].float(), hidden, rtol=1e-2, atol=1e-3)


@TIED
def test_the_number_of_parameters_by_hand(tied):
    """H = 16, 24 inside, 2 layers, 2 heads on 1 key/value head, V = 30.

    A layer: q and o 16 x 16 each, k and v 16 x 8 each, three matrices 16 x 24, two norms of 16: 1,952.
    The body: 30 x 16 embeddings, two layers, a norm of 16: 4,400.  An own head adds 480, the value head 17.
    """
    small = PolicyShape(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
    )
    network, value = build_policy(small, 30, torch.float32, 1, "chunked"), build_value(small, 30, torch.float32, 1)
    assert sum(p.numel() for p in network.parameters()) == (4400 if tied else 4880)
    assert sum(p.numel() for p in value.parameters()) == 4417
