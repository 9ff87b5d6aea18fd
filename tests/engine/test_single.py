"""The engine of one process: plain AdamW in float32, float32 sums and masters under bfloat16, and resume."""

import copy

import pytest
import torch
from torch import Tensor, nn

from destruct.config.deepspeed import Optimizer, OptimizerParams
from destruct.config.model import PolicyShape
from destruct.engine.single import SingleEngine, SingleFrozen
from destruct.errors import DestructError
from destruct.models.policy import build_copy, build_policy
from destruct.ops.rows import ScoreRows

ADAM = {"betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def network(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 1)).to(dtype)


def engine(module: nn.Module, accumulation: int = 2, max_grad_norm: float = 0.3) -> SingleEngine:
    return SingleEngine(module, Optimizer(params=OptimizerParams(**ADAM)), accumulation, max_grad_norm)


def losses(module: nn.Module, seed: int) -> list[Tensor]:
    """Two micro-batches of a regression, already divided by the rows of both."""
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(seed)).to(next(module.parameters()).dtype)
    return [(module(part).float() - part.float().sum(1, keepdim=True)).square().sum() / 8 for part in x.chunk(2)]


def train(trained: SingleEngine, steps: range) -> list[float]:
    norms = []
    for step in steps:
        for loss in losses(trained.module, step):
            trained.backward(loss)
        norms.append(trained.grad_norm())
        trained.step(1e-2 / (step + 1))
    return norms


def weights(trained: SingleEngine) -> list[Tensor]:
    return [t.clone() for _, t in trained.tensors_in_full()] + [m.detach().clone() for m in trained.masters]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a, b, strict=True))


class OneWeight(nn.Module):
    """A weight whose gradient is whatever number it is multiplied with."""

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, dtype=dtype))

    def forward(self, factor: float) -> Tensor:
        return (self.weight * factor).sum()


def test_float32_steps_are_those_of_torchs_adamw_with_clipping_on_a_copy():
    module = network()
    plain = copy.deepcopy(module)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1.0, **ADAM)
    norms = []
    for step in range(6):
        for loss in losses(plain, step):
            loss.backward()
        norms.append(nn.utils.clip_grad_norm_(plain.parameters(), 0.3).item())
        optimizer.param_groups[0]["lr"] = 1e-2 / (step + 1)
        optimizer.step()
        optimizer.zero_grad()
    assert train(engine(module), range(6)) == norms
    assert equal(list(module.parameters()), list(plain.parameters()))
    assert max(norms) > 0.3, "something was clipped"


def test_both_names_of_adam_decouple_the_weight_decay():
    """A gradient of 0 leaves the decay alone: w (1 - lr * 0.1), where a coupled one would move w by lr."""
    for name in ("AdamW", "Adam"):
        trained = SingleEngine(OneWeight(torch.float32), Optimizer(type=name, params=OptimizerParams(**ADAM)), 1, 1.0)
        trained.backward(trained(0.0))
        trained.grad_norm()
        trained.step(0.5)
        assert trained.module.weight.item() == pytest.approx(1 - 0.5 * 0.1, rel=1e-7)


def test_the_norm_is_that_before_clipping_and_the_step_that_after():
    """Gradients 3 and 4 make 5; with SGD-like Adam (eps far above them) the step is lr * clipped / eps."""
    module = nn.ParameterList([nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))])
    adam = Optimizer(params=OptimizerParams(eps=1e6))
    trained = SingleEngine(module, adam, 1, max_grad_norm=1.0)
    trained.backward((3 * module[0] + 4 * module[1]).sum())
    assert trained.grad_norm() == pytest.approx(5.0, rel=1e-6)
    trained.step(1e6)
    assert [p.item() for p in module] == pytest.approx([-0.6, -0.8], rel=1e-5)


def test_bfloat16_gradients_add_up_in_float32():
    """256 + 1 is 257 in float32 and 256 in bfloat16, whose spacing is 2 there."""
    module = OneWeight(torch.bfloat16)
    trained = engine(module, accumulation=2, max_grad_norm=1e6)
    for factor in (256.0, 1.0):
        trained.backward(trained(factor))
    assert trained.grad_norm() == 257.0
    for factor in (256.0, 1.0):
        module(factor).backward()
    assert module.weight.grad.item() == 256.0, "what torch adds up in bfloat16"


def test_bfloat16_weights_remember_steps_that_are_too_small_for_them():
    """Five steps of 0.001 from 1: the master is 0.995, its bfloat16 image 255/256; without a master nothing moves."""
    module, bare = OneWeight(torch.bfloat16), OneWeight(torch.bfloat16)
    trained = SingleEngine(module, Optimizer(), 1, 1e6)
    optimizer = torch.optim.AdamW(bare.parameters(), lr=1e-3, eps=1e-5, weight_decay=0.0)
    for _ in range(5):
        trained.backward(trained(1.0))
        trained.grad_norm()
        trained.step(1e-3)
        bare(1.0).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert trained.masters[0].item() == pytest.approx(0.995, abs=1e-6)
    assert module.weight.item() == 255 / 256
    assert bare.weight.item() == 1.0


@DTYPES
def test_dropped_gradients_leave_no_trace(dtype):
    """A loss that is not finite, dropped, then a clean step, against the clean step alone."""
    with_drop, without = engine(network(dtype)), engine(network(dtype))
    before = weights(with_drop)
    for loss in losses(with_drop.module, 9):
        with_drop.backward(loss * float("nan"))
    with_drop.drop_gradients()
    assert equal(weights(with_drop), before)
    assert train(with_drop, range(2)) == train(without, range(2))
    assert equal(weights(with_drop), weights(without))
    assert not equal(weights(with_drop), before)


@DTYPES
def test_six_steps_equal_three_and_a_checkpoint_and_three_bit_for_bit(dtype, tmp_path):
    whole, halved, resumed = (engine(network(dtype, seed)) for seed in (0, 0, 5))
    norms = train(whole, range(6))
    train(halved, range(3))
    halved.save(tmp_path, "policy")
    for loss in losses(resumed.module, 9):
        resumed.backward(loss)
    resumed.load(tmp_path, "policy")
    assert equal(weights(resumed), weights(halved))
    assert train(resumed, range(3, 6)) == norms[3:]
    assert equal(weights(resumed), weights(whole))


def test_a_checkpoint_of_another_backend_is_refused_with_its_path(tmp_path):
    (tmp_path / "policy").mkdir()
    with pytest.raises(DestructError, match=r"policy/state.pt does not exist") as caught:
        engine(network()).load(tmp_path, "policy")
    assert "engine.backend" in caught.value.remedy


SHAPE = PolicyShape(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)


@DTYPES
def test_a_refresh_is_seen_by_the_next_forward_and_a_later_step_is_not(dtype):
    """Frozen logprobs equal the policy's right after the refresh, bit for bit, and stay when the policy moves on."""
    policy = SingleEngine(build_policy(SHAPE, 20, dtype, 1, "chunked"), Optimizer(), 1, 1.0)
    frozen = SingleFrozen(build_copy(SHAPE, 20, dtype, "chunked"))
    tokens, rows = torch.arange(10).view(2, 5), torch.tensor([0, 1, 2, 3, 5, 6, 7, 8])
    request = ScoreRows(tokens[:, 1:].flatten(), torch.ones(8))

    def logprobs(asked: SingleEngine | SingleFrozen) -> Tensor:
        return asked(tokens, rows, request).logprobs

    assert not torch.equal(logprobs(frozen), logprobs(policy)), "the copy starts elsewhere"
    frozen.refresh(policy)
    old = logprobs(policy)
    assert torch.equal(logprobs(frozen), old)
    policy.backward(policy(tokens, rows, None).float().square().mean())
    policy.grad_norm()
    policy.step(0.1)
    assert not torch.equal(logprobs(policy), old), "the policy moved"
    assert torch.equal(logprobs(frozen), old)
    assert not any(p.requires_grad for p in frozen.module.parameters())
    whole = {name: t.clone() for name, t in frozen.tensors_in_full()}
    frozen.refresh(policy)
    assert torch.equal(logprobs(frozen), logprobs(policy))
    frozen.load_tensors(whole)
    assert torch.equal(logprobs(frozen), old)


def test_a_replica_is_filled_with_the_weights_of_now():
    policy = SingleEngine(build_policy(SHAPE, 20, torch.float32, 1, "chunked"), Optimizer(), 1, 1.0)
    replica = build_copy(SHAPE, 20, torch.float32, "chunked")
    policy.fill(replica)
    named = dict(replica.named_parameters())
    assert named.keys() == {name for name, _ in policy.tensors_in_full()}
    assert all(torch.equal(t, named[name]) and t is not named[name] for name, t in policy.tensors_in_full())
    policy.fill(policy.module)  # one process: the policy may be its own replica


class LooksUp(nn.Module):
    """Embeddings that are looked up, some of them twice, and, if they are tied, multiplied with besides."""

    def __init__(self, tied: bool):
        super().__init__()
        self.embedding, self.head = nn.Embedding(40, 8), nn.Linear(8, 40, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embedding(tokens)).float().square().mean()


@pytest.mark.parametrize("tied", [False, True])
def test_gradients_of_embeddings_are_the_float32_sum_of_those_of_the_micro_batches(tied):
    """Of rows that are looked up in one micro-batch, in both, twice and never; a second step begins at 0 again."""
    torch.manual_seed(0)
    module = LooksUp(tied).bfloat16()
    plain, trained = copy.deepcopy(module), engine(module, max_grad_norm=1e9)
    assert module.embedding.sparse is not tied
    for step in range(2):
        batches = torch.randint(0, 20, (2, 12), generator=torch.Generator().manual_seed(step))
        totals = [torch.zeros_like(p, dtype=torch.float32) for p in plain.parameters()]
        for tokens in batches:
            plain.zero_grad()
            plain(tokens).backward()
            trained.backward(module(tokens))
            for total, p in zip(totals, plain.parameters(), strict=True):
                total += p.grad.float()
        for total, master in zip(totals, trained.masters, strict=True):
            # A row that is looked up twice is added up in bfloat16 by torch's dense gradient, in float32 here.
            torch.testing.assert_close(master.grad, total, rtol=2**-7, atol=1e-6)
        assert tied or trained.masters[0].grad[20:].eq(0).all()
        trained.drop_gradients()


def test_the_memory_of_the_sums_is_taken_once():
    trained = engine(network(torch.bfloat16))
    places = []
    for step in range(2):
        for loss in losses(trained.module, step):
            trained.backward(loss)
        places.append([master.grad.data_ptr() for master in trained.masters])
        trained.grad_norm()
        trained.step(1e-2)
    assert places[0] == places[1]


def test_a_gradient_of_several_parts_is_added_up_in_all_of_them(monkeypatch):
    module = network(torch.bfloat16)
    whole = engine(copy.deepcopy(module))
    train(whole, range(2))
    monkeypatch.setattr("destruct.engine.single.PART", 4)  # of 54 elements, the last part of 2
    parts = engine(module)
    train(parts, range(2))
    assert equal(weights(whole), weights(parts))
