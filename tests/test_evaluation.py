"""Held-out losses against F.cross_entropy on a plain transformers model, and their means by hand."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaForCausalLM

from destruct.batch import TokenWindows
from destruct.config.deepspeed import Optimizer
from destruct.config.model import PolicyShape
from destruct.engine import topology
from destruct.engine.single import SingleEngine, SingleFrozen
from destruct.engine.topology import Topology
from destruct.evaluation import WINDOWS_PER_FORWARD, Validation, ValidationSet, validate, window_nats
from destruct.models.policy import PolicyNetwork, build_policy, llama_config

V, T = 40, 9
ALONE = Topology(0, 1, torch.device("cpu"))
SHAPE = PolicyShape(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, initializer_range=0.4
)


@pytest.fixture(scope="module")
def network() -> PolicyNetwork:
    return build_policy(SHAPE, V, torch.float32, 1, "chunked")


@pytest.fixture
def engine(network) -> SingleEngine:
    return SingleEngine(network, Optimizer(), 1, 1.0)


def windows(count: int, seed: int = 0) -> TokenWindows:
    return TokenWindows.full(torch.randint(0, V, (count, T), generator=torch.Generator().manual_seed(seed)))


def plain_nats(network: PolicyNetwork, windows: TokenWindows) -> Tensor:
    """(n,) float64 nats, window by window: full logits in float64, no batching."""
    plain = LlamaForCausalLM._from_config(llama_config(SHAPE, V), dtype=torch.float32)
    plain.load_state_dict({n.removeprefix("lm."): p for n, p in network.named_parameters()}, strict=False)
    plain = plain.double()
    with torch.no_grad():
        sums = [F.cross_entropy(plain(row[None]).logits[0, :-1], row[1:], reduction="sum") for row in windows.tokens]
    return torch.stack(sums)


@pytest.mark.parametrize("count", [1, 5, WINDOWS_PER_FORWARD, 2 * WINDOWS_PER_FORWARD + 3])
def test_the_nats_of_each_window_are_transformers_cross_entropy(network, engine, count):
    """One forward, a full one, and two full ones with a rest; the first token of a window is context only."""
    tokens = windows(count)
    got = window_nats(engine, tokens, ALONE)
    torch.testing.assert_close(got, plain_nats(network, tokens), rtol=1e-6, atol=0)
    assert got.max() - got.min() > 1 or count == 1, "the windows differ, so an exchange would show"


def packed(tokens: Tensor, borders: list[list[int]]) -> TokenWindows:
    """Windows whose documents begin at 0 and at the borders."""
    edges = [[0, *row, T] for row in borders]
    positions = [[place for a, b in pairwise(row) for place in range(b - a)] for row in edges]
    return TokenWindows(tokens, torch.tensor(positions))


def test_documents_in_one_window_have_the_nats_of_each_document_alone(network, engine):
    """Of 4 and 5 tokens; of 2, 1 and 6; of 3 with a padding of single tokens, whose content is nothing; a whole one."""
    tokens = windows(4).tokens
    several = packed(tokens, [[4], [2, 3], [3, 4, 5, 6, 7, 8], []])
    spans = [(0, 0, 4), (0, 4, 9), (1, 0, 2), (1, 3, 9), (2, 0, 3), (3, 0, 9)]
    want = torch.zeros(4, dtype=torch.float64)
    for row, start, end in spans:
        want[row] += plain_nats(network, TokenWindows.full(tokens[row : row + 1, start:end]))[0]
    torch.testing.assert_close(window_nats(engine, several, ALONE), want, rtol=1e-6, atol=0)
    assert several.target_counts.tolist() == [7, 6, 2, 8]
    padded = tokens.clone()
    padded[2, 3:] = 0
    again = TokenWindows(padded, several.positions)
    assert torch.equal(window_nats(engine, again, ALONE), window_nats(engine, several, ALONE))
    source = ValidationSet("prose", several, 50, True)
    got = validate(engine, [source], ALONE)
    assert got.nats_per_token == {"prose": pytest.approx(want.sum().item() / 23, rel=1e-6)}


def test_a_window_in_which_nothing_is_predicted_has_no_nats_and_a_source_of_such_windows_no_loss(engine):
    several = packed(windows(2).tokens, [[*range(1, 9)], [4]])
    nats = window_nats(engine, several, ALONE)
    assert nats[0] == 0 and nats[1] > 0
    assert window_nats(engine, several.select(torch.tensor([0])), ALONE).tolist() == [0]
    with pytest.raises(ValueError, match="'prose': nothing is predicted in its 1 windows"):
        ValidationSet("prose", several.select(torch.tensor([0])), 50, True)


def test_no_graph_is_kept_while_windows_are_scored(engine):
    """The activations of a training network would otherwise be held for a backward pass that never comes."""
    kept = []
    body = engine.module.lm.model
    hook = body.register_forward_hook(
        lambda module, inputs, output: kept.append(output.last_hidden_state.requires_grad)
    )
    nats = window_nats(engine, windows(3), ALONE)
    hook.remove()
    assert kept == [False] and not nats.requires_grad


def test_the_frozen_engine_gives_the_same_nats(network, engine):
    other = SingleFrozen(build_policy(SHAPE, V, torch.float32, 2, "chunked"))
    assert not torch.equal(window_nats(other, windows(20), ALONE), window_nats(engine, windows(20), ALONE))
    other.refresh(engine)
    assert torch.equal(window_nats(other, windows(20), ALONE), window_nats(engine, windows(20), ALONE))


def test_every_rank_makes_as_many_forwards_as_the_largest_share_needs(engine, monkeypatch):
    """33 windows on 2 ranks are 17 and 16: two forwards each, the second rank's last one on nothing.

    torch's sum over ranks is left out: what each rank holds before it is 0 on the other's windows.
    """
    monkeypatch.setattr(topology.dist, "all_reduce", lambda total: None)
    forwards, halves = [], []
    hook = engine.module.register_forward_hook(lambda module, inputs, output: forwards.append(len(inputs[0])))
    for rank in range(2):
        halves.append(window_nats(engine, windows(33), Topology(rank, 2, torch.device("cpu"))))
    hook.remove()
    assert forwards == [16, 1, 16, 0]
    assert not halves[0][1::2].any() and not halves[1][0::2].any()
    torch.testing.assert_close(halves[0] + halves[1], window_nats(engine, windows(33), ALONE), rtol=1e-6, atol=0)


def test_more_ranks_than_windows_leave_some_ranks_with_nothing(engine, monkeypatch):
    monkeypatch.setattr(topology.dist, "all_reduce", lambda total: None)
    nats = [window_nats(engine, windows(2), Topology(rank, 4, torch.device("cpu"))) for rank in range(4)]
    assert [int(x.count_nonzero()) for x in nats] == [1, 1, 0, 0]


def held_out(learnable: dict[str, bool]) -> list[ValidationSet]:
    """Sources of different sizes, so that a mean over windows would not be the mean over sources."""
    return [ValidationSet(name, windows(3 + 2 * i, i), 50 + i, fit) for i, (name, fit) in enumerate(learnable.items())]


def test_a_sources_loss_is_per_scored_token_and_its_bits_are_per_byte(network, engine):
    """3 windows of 9 tokens have 24 scored tokens; one nat is 1 / ln 2 bits; 50 bytes."""
    total = plain_nats(network, windows(3)).sum().item()
    got = validate(engine, held_out({"prose": True}), ALONE)
    assert got.nats_per_token == {"prose": pytest.approx(total / 24, rel=1e-6)}
    assert got.bits_per_byte == {"prose": pytest.approx(total * math.log2(math.e) / 50, rel=1e-6)}


def test_a_uniform_model_needs_log2_of_the_vocabulary_bits_a_token():
    """All weights 0: ln 40 nats for every token; 24 tokens in 50 bytes."""
    silent = SingleFrozen(build_policy(SHAPE, V, torch.float32, 1, "chunked"))
    silent.load_tensors({name: torch.zeros_like(p) for name, p in silent.tensors_in_full()})
    got = validate(silent, held_out({"prose": True}), ALONE)
    assert got.nats_per_token["prose"] == pytest.approx(math.log(V), rel=1e-6)
    assert got.bits_per_byte["prose"] == pytest.approx(24 * math.log2(V) / 50, rel=1e-6)


def test_the_mean_weighs_learnable_sources_equally_and_leaves_out_the_others(engine):
    got = validate(engine, held_out({"prose": True, "noise": False, "code": True}), ALONE)
    per = got.nats_per_token
    assert got.mean == pytest.approx((per["prose"] + per["code"]) / 2, rel=1e-12)
    assert len({per["prose"], per["noise"], per["code"]}) == 3
    assert got.as_summary() == {**per, "mean": got.mean}


def test_when_no_source_is_learnable_all_count(engine):
    got = validate(engine, held_out({"noise": False, "static": False}), ALONE)
    assert got.mean == pytest.approx(sum(got.nats_per_token.values()) / 2, rel=1e-12)
    assert isinstance(got, Validation)
