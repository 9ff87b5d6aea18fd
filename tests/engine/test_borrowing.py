"""A network that borrows each module's weights: the engine's own answers, and nothing kept between two calls."""

import pytest
import torch

from destruct.config.deepspeed import Optimizer
from destruct.config.model import PolicyShape
from destruct.engine.borrowing import borrow
from destruct.engine.single import SingleEngine
from destruct.models.policy import PolicyNetwork, build_copy, build_policy, take_buffers

TOKENS = torch.tensor([[3, 5, 7, 9], [2, 4, 6, 8]])


def shape(tied: bool) -> PolicyShape:
    return PolicyShape(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=tied,
        initializer_range=0.3,
    )


def borrowing(tied: bool) -> tuple[SingleEngine, PolicyNetwork]:
    engine = SingleEngine(build_policy(shape(tied), 64, torch.float32, 1, "chunked"), Optimizer(), 1, 1.0)
    with torch.device("meta"):
        network = build_copy(shape(tied), 64, torch.float32, "chunked")
    take_buffers(network, engine.module)
    borrow(network, engine, torch.device("cpu"))
    return engine, network


def held(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
def test_it_answers_as_the_engines_network_does_also_after_a_step_and_holds_nothing_in_between(tied):
    engine, network = borrowing(tied)
    rows = torch.arange(8)
    for _ in range(2):
        assert held(network) == 0
        assert torch.equal(network(TOKENS, rows, None), engine(TOKENS, rows, None))
        for p in engine.module.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    assert [name for name, _ in network.named_parameters()] == [name for name, _ in engine.module.named_parameters()]


@torch.no_grad()
def test_what_a_failed_call_borrowed_is_given_back():
    _, network = borrowing(tied=True)
    with pytest.raises(IndexError):
        network(torch.tensor([[64]]), torch.arange(1), None)
    assert held(network) == 0
