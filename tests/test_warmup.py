"""Warm-up: plain cross-entropy for the policy, the value network alone, and losses that are not finite."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaForCausalLM

from destruct.batch import PromptBatch, RewardedBatch, RolloutBatch, ScoredBatch, TokenWindows, TrainBatch
from destruct.config.deepspeed import Optimizer
from destruct.config.model import LlamaShape, PolicyShape
from destruct.engine.single import SingleEngine
from destruct.engine.topology import Topology
from destruct.minibatch import Minibatch
from destruct.models.policy import build_policy, llama_config
from destruct.models.value import build_value
from destruct.warmup import cross_entropy_step, value_pass

V, P, R = 40, 4, 5
ALONE = Topology(0, 1, torch.device("cpu"))
BODY = LlamaShape(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, initializer_range=0.3
)


def shape(tied: bool = True) -> PolicyShape:
    return PolicyShape(**BODY.model_dump(), tie_word_embeddings=tied)


def policy(accumulation: int = 1, tied: bool = True, clip: float = 1e6) -> SingleEngine:
    return SingleEngine(build_policy(shape(tied), V, torch.float32, 1, "chunked"), Optimizer(), accumulation, clip)


def windows(count: int = 6, seed: int = 0) -> Tensor:
    """Tokens 1 to V - 1: token 0 is kept for a poisoned row of the embedding."""
    return torch.randint(1, V, (count, P + R), generator=torch.Generator().manual_seed(seed))


def bits(engine: SingleEngine) -> list[Tensor]:
    """Weights as integers, so that NaN equals itself."""
    return [p.detach().clone().view(torch.int32) for p in engine.parameters]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_loss_and_step_are_those_of_cross_entropy_over_all_tokens_but_each_first():
    """F.cross_entropy on a plain transformers model with the same weights, and torch's AdamW."""
    engine, tokens = policy(), windows()
    plain = LlamaForCausalLM._from_config(llama_config(shape(), V), dtype=torch.float32)
    plain.load_state_dict({n.removeprefix("lm."): p for n, p in engine.module.named_parameters()}, strict=False)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, eps=1e-5, weight_decay=0.0)
    expected = F.cross_entropy(plain(tokens).logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    expected.backward()
    loss, stepped = cross_entropy_step(engine, TokenWindows.full(tokens), 1e-3, ALONE)
    assert stepped
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    optimizer.step()
    theirs = dict(plain.named_parameters())
    for name, p in engine.module.named_parameters():
        torch.testing.assert_close(p, theirs[name.removeprefix("lm.")], rtol=0, atol=2e-6)


DOCUMENTS = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 0, 0, 0, 0, 0, 0, 0, 0]])


def test_the_loss_is_the_mean_over_what_is_predicted_in_documents_read_alone():
    """3 and 6 tokens, 9 tokens, 9 documents of one token: 2 + 5 + 8 targets."""
    engine, tokens = policy(2), windows(3)
    plain = LlamaForCausalLM._from_config(llama_config(shape(), V), dtype=torch.float32)
    plain.load_state_dict({n.removeprefix("lm."): p for n, p in engine.module.named_parameters()}, strict=False)
    plain = plain.double()
    documents = [tokens[0, :3], tokens[0, 3:], tokens[1]]
    sums = [F.cross_entropy(plain(d[None]).logits[0, :-1], d[1:], reduction="sum") for d in documents]
    expected = torch.stack(sums).sum() / 15
    expected.backward()
    taken = {}
    engine.step = lambda lr: taken.update({n: p.grad for n, p in engine.module.named_parameters()})
    loss, _ = cross_entropy_step(engine, TokenWindows(tokens, DOCUMENTS), 1e-3, ALONE)
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    theirs = dict(plain.named_parameters())
    for name, gradient in taken.items():
        want = theirs[name.removeprefix("lm.")].grad
        assert (gradient.double() - want).norm() <= 1e-5 * want.norm(), name


def test_windows_in_which_nothing_is_predicted_have_no_loss_and_no_gradient():
    engine = policy(2)
    before = [p.detach().clone() for p in engine.parameters]
    nothing = TokenWindows(windows(3), torch.zeros_like(DOCUMENTS))
    assert cross_entropy_step(engine, nothing, 1e-3, ALONE) == (0, True)
    assert all(torch.equal(a, b) for a, b in zip(before, engine.parameters, strict=True))


@pytest.mark.parametrize("accumulation", [2, 4, 8])
def test_the_step_does_not_depend_on_the_accumulation(accumulation):
    """Six windows in 1, 2, 4 (uneven) and 8 (two of them empty) micro-batches."""
    whole, split = policy(1), policy(accumulation)
    expected, _ = cross_entropy_step(whole, TokenWindows.full(windows()), 1e-3, ALONE)
    loss, stepped = cross_entropy_step(split, TokenWindows.full(windows()), 1e-3, ALONE)
    assert stepped
    assert loss == pytest.approx(expected, rel=1e-6)
    for (name, a), (_, b) in zip(whole.tensors_in_full(), split.tensors_in_full(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6, msg=name)


def test_a_loss_that_is_not_finite_moves_nothing_and_is_told():
    """Token 0's embedding is NaN: a batch with it is dropped, and the next one steps as if it had never been."""
    engine, untouched = policy(2, tied=False), policy(2, tied=False)
    for each in (engine, untouched):
        with torch.no_grad():
            each.module.lm.model.embed_tokens.weight[0] = float("nan")
    bad = windows()
    bad[0, 3] = 0
    before = bits(engine)
    loss, stepped = cross_entropy_step(engine, TokenWindows.full(bad), 1e-3, ALONE)
    assert stepped is False and loss != loss
    assert equal(bits(engine), before)
    losses = [cross_entropy_step(each, TokenWindows.full(windows()), 1e-3, ALONE) for each in (engine, untouched)]
    assert losses[0] == losses[1] and losses[0][1]
    assert equal(bits(engine), bits(untouched))
    assert not equal(bits(engine), before)


def test_repeated_steps_learn_the_batch_by_heart():
    engine, tokens = policy(2, clip=1.0), windows()
    losses = [cross_entropy_step(engine, TokenWindows.full(tokens), 1e-2, ALONE)[0] for _ in range(30)]
    assert losses[-1] < 0.2 * losses[0]


def rollouts() -> RolloutBatch:
    lengths = torch.tensor([5, 2, 4])
    mask = torch.arange(R) < lengths[:, None]
    tokens = windows(3, seed=2)
    prompts = PromptBatch.full(0, P, tokens, torch.zeros(3, dtype=torch.int64), torch.arange(3))
    return RolloutBatch(prompts, tokens[:, P:], mask, torch.zeros(3, dtype=torch.bool), teacher_forced=False)


def fixed_returns() -> list[Minibatch[TrainBatch]]:
    """Three rollouts in two micro-batches of one minibatch; old values 0, returns 0.05 to 0.15."""
    batch = rollouts()
    returns = (0.05 + 0.1 * torch.rand(3, R, generator=torch.Generator().manual_seed(3))) * batch.mask
    parts = []
    for rows in (torch.tensor([0]), torch.tensor([1, 2])):
        part, zeros = batch.select(rows), torch.zeros(len(rows), R)
        scored = ScoredBatch(RewardedBatch(part, zeros, zeros[:, 0], zeros[:, :1]), zeros, zeros, zeros, zeros)
        parts.append(TrainBatch(scored, zeros, returns[rows]))
    return [Minibatch(tuple(parts), 11, 15, 0)]


def value() -> SingleEngine:
    return SingleEngine(build_value(BODY, V, torch.float32, 3), Optimizer(), 2, 1.0)


def test_value_passes_start_at_half_the_mean_square_of_the_returns_and_lower_it():
    """The network starts at 0 everywhere, as the old values are: the loss is sum R^2 / 2 over the 11 tokens."""
    batches, engine = fixed_returns(), value()
    squares = sum(train.returns.double().square().sum().item() for train in batches[0].micro_batches)
    losses = [value_pass(engine, batches, 0.2, 3e-3, ALONE)[0] for _ in range(30)]
    assert losses[0] == pytest.approx(squares / 2 / 11, rel=1e-6)
    assert losses[-1] < 0.05 * losses[0]


def test_a_value_pass_drops_a_minibatch_whose_loss_is_not_finite_and_makes_the_others():
    """Bad and good minibatch in one pass, against the good one alone."""
    (good,) = fixed_returns()
    bad = good.map(lambda train: TrainBatch(train.scored, train.advantages, train.returns * float("inf")))
    both, alone = value(), value()
    before = bits(both)
    loss, skipped = value_pass(both, [bad, good], 0.2, 1e-3, ALONE)
    assert not loss < float("inf"), "the mean tells of it"
    assert skipped == 1
    value_pass(alone, [good], 0.2, 1e-3, ALONE)
    assert equal(bits(both), bits(alone))
    assert not equal(bits(both), before)
