"""The update as a whole, against the formulas written out on a plain transformers model in float64."""

import dataclasses
import math

import pytest
import torch
from transformers import LlamaForCausalLM

from destruct.batch import ScoredBatch, TrainBatch
from destruct.engine.single import SingleEngine
from destruct.models.policy import build_policy, llama_config
from destruct.ppo import update
from destruct.ppo.distance import kl_to_reference
from destruct.ppo.update import accumulate, ppo_update
from destruct.rollout.score import response_logprobs
from tests.ppo.rollouts import (
    ALONE,
    COEFFICIENTS,
    FLOAT32,
    PTX,
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


def textbook_policy_loss(lm: LlamaForCausalLM, batch: TrainBatch) -> torch.Tensor:
    """Eq. 7 of 1707.06347, k2 and entropy per response token, InstructGPT's PTX per continuation token; full logits."""
    rollouts, mask = batch.scored.rollouts, batch.scored.rollouts.mask
    logits = lm(rollouts.tokens).logits[:, P - 1 : -1] / TAU
    logprobs = torch.log_softmax(logits, -1)
    chosen = logprobs.gather(2, rollouts.responses[:, :, None]).squeeze(2)
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    ratio = torch.exp(chosen - batch.scored.old_logprobs.double())
    advantages = batch.advantages.double()
    surrogate = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    k2 = (chosen - batch.scored.reference_logprobs.double()).square() / 2
    per_token = surrogate + 0.07 * k2 - 0.02 * entropy
    windows = rollouts.prompts.windows
    nll = torch.nn.functional.cross_entropy(lm(windows).logits[:, P - 1 : -1].flatten(0, 1), windows[:, P:].flatten())
    return per_token[mask].sum() / mask.sum() + PTX * nll


def test_the_policys_gradient_is_the_textbooks(batch):
    """Packed micro-batches, fused loss and a head that sees response rows alone, against full logits in float64."""
    policy, value = engines(build_policy(SHAPE, V, torch.float32, 1, "chunked"))
    plain = LlamaForCausalLM._from_config(llama_config(SHAPE, V), dtype=torch.float32)
    plain.load_state_dict({n.removeprefix("lm."): p for n, p in policy.module.named_parameters()}, strict=False)
    plain = plain.double()
    textbook_policy_loss(plain, batch).backward()
    accumulate(policy, value, packed(batch)[0], COEFFICIENTS, settings(), ALONE.device)
    expected = dict(plain.named_parameters())
    for name, p in policy.module.named_parameters():
        want = expected[name.removeprefix("lm.")].grad
        assert (p.grad.double() - want).norm() <= FLOAT32 * want.norm(), name


def test_the_value_networks_gradient_is_the_textbooks(batch):
    """Half the larger of two squares, clipped around the old value; mean over response tokens."""
    policy, value = engines(build_policy(SHAPE, V, torch.float32, 1, "chunked"))
    accumulate(policy, value, packed(batch)[0], COEFFICIENTS, settings(), ALONE.device)
    got = {name: p.grad.clone() for name, p in value.module.named_parameters()}
    value.drop_gradients()
    network = value.module.double()
    rollouts, mask = batch.scored.rollouts, batch.scored.rollouts.mask
    hidden = network.body(input_ids=rollouts.tokens, use_cache=False).last_hidden_state[:, P - 1 : -1]
    values = (hidden @ network.head.weight.T + network.head.bias).squeeze(-1)
    old, returns = batch.scored.old_values.double(), batch.returns.double()
    clipped = old + (values - old).clamp(-0.2, 0.2)
    losses = torch.maximum((values - returns).square(), (clipped - returns).square()) / 2
    (losses[mask].sum() / mask.sum()).backward()
    for name, p in network.named_parameters():
        assert (got[name].double() - p.grad).norm() <= FLOAT32 * p.grad.norm(), name


def scored_by(policy: SingleEngine, batch: TrainBatch) -> TrainBatch:
    """The batch with the policy's own logprobs as old and reference."""
    own = response_logprobs(policy, batch.scored.rollouts, TAU, ptx=True)
    s = batch.scored
    scored = ScoredBatch(s.rewarded, own, own, s.old_values, s.rewards)
    return TrainBatch(scored, batch.advantages, batch.returns)


def test_steps_are_the_plan_less_what_the_early_stop_skipped(batch):
    """Three epochs; a tight bound ends the update after the first one, also when an epoch is a single step."""
    for bound, count, steps, epochs in [(None, 2, 6, 3), (1e-9, 2, 2, 1), (1e9, 2, 6, 3), (1e-9, 1, 1, 1)]:
        policy, value = engines(build_policy(SHAPE, V, torch.float32, 1, "chunked"))
        minibatches = packed(scored_by(policy, batch), count)
        order = torch.Generator().manual_seed(0)
        stats = ppo_update(
            policy, value, minibatches, COEFFICIENTS, settings(epochs=3, early_stop_kl=bound), 0, order, ALONE
        )
        assert (stats.steps, stats.steps_planned, stats.epochs) == (steps, 3 * count, epochs)
        moments = next(iter(policy.optimizer.state.values()))
        assert moments["step"].item() == steps, "Adam's own count"


def test_each_network_steps_by_its_own_schedule_and_the_minibatches_of_each_epoch_are_shuffled(batch, monkeypatch):
    seen = []
    policy, value = engines(build_policy(SHAPE, V, torch.float32, 1, "chunked"))
    for name, engine in (("policy", policy), ("value", value)):
        step = engine.step
        monkeypatch.setattr(engine, "step", lambda lr, name=name, step=step: seen.append((name, lr)) or step(lr))
    rates = settings(epochs=6, policy_lr=lambda step: step / 1e4, value_lr=lambda step: step / 1e6)
    minibatches, orders = packed(batch, 2), []
    first = {id(minibatch.micro_batches[0]): number for number, minibatch in enumerate(minibatches)}
    loss_rows = update.loss_rows

    def watched(train, *arguments):
        orders.append(first.get(id(train)))
        return loss_rows(train, *arguments)

    monkeypatch.setattr(update, "loss_rows", watched)
    ppo_update(policy, value, minibatches, COEFFICIENTS, rates, 30, torch.Generator().manual_seed(0), ALONE)
    expected = [pair for step in range(30, 42) for pair in (("policy", step / 1e4), ("value", step / 1e6))]
    assert seen == expected
    epochs = [number for number in orders if number is not None]
    assert {tuple(epochs[i : i + 2]) for i in range(0, 12, 2)} == {(0, 1), (1, 0)}


@pytest.mark.parametrize("dual_clip", [None, 1.5])
def test_what_is_logged_of_an_update_is_worked_out_from_its_rows_in_float64(batch, dual_clip):
    """One step on one minibatch, so every figure is of the policy that stands here before it."""
    policy, value = engines(build_policy(SHAPE, V, torch.float32, 1, "chunked"))
    now = response_logprobs(policy, batch.scored.rollouts, TAU, ptx=True)
    mask, s = batch.scored.rollouts.mask, batch.scored
    log_ratio = (now - s.old_logprobs)[mask].double()
    reference = (s.reference_logprobs - now)[mask].double()
    ratio, a = log_ratio.exp(), batch.advantages[mask].double()
    plain = LlamaForCausalLM._from_config(llama_config(SHAPE, V), dtype=torch.float64)
    plain.load_state_dict({n.removeprefix("lm."): p.double() for n, p in policy.tensors_in_full()}, strict=False)
    with torch.no_grad():
        truth = plain(s.rollouts.prompts.windows).logits[:, P - 1 : -1].log_softmax(-1)
        sampled = (plain(s.rollouts.tokens).logits[:, P - 1 : -1] / TAU).log_softmax(-1)
    ptx = -truth.gather(2, s.rollouts.prompts.windows[:, P:, None]).mean()
    entropy = -(sampled.exp() * sampled).sum(-1)[mask].mean()
    clipped = ((a > 0) & (ratio > 1.2)) | ((a < 0) & (ratio < 0.8))
    dual, losses = torch.zeros_like(clipped), torch.maximum(-a * ratio, -a * ratio.clamp(0.8, 1.2))
    if dual_clip is not None:
        dual, losses = (a < 0) & (ratio > 1.5), torch.where(a < 0, torch.minimum(losses, -1.5 * a), losses)
    coefficients = dataclasses.replace(COEFFICIENTS, dual_clip=dual_clip)
    stats = ppo_update(policy, value, packed(batch), coefficients, settings(), 0, torch.Generator(), ALONE)
    expected = {
        "policy_loss": losses.mean(),
        "ptx_loss": ptx,
        "entropy": entropy,
        "approx_kl": (ratio - 1 - log_ratio).mean(),
        "approx_kl_k1": -log_ratio.mean(),
        "reference_kl": (reference.exp() - 1 - reference).mean(),
        "reference_kl_k1": -reference.mean(),
        "ratio_mean": ratio.mean(),
        "ratio_min": ratio.min(),
        "ratio_max": ratio.max(),
        "clip_fraction": (clipped | dual).double().mean(),
        "dual_clip_fraction": dual.double().mean(),
        "first_ratio_error": log_ratio.abs().max(),
    }
    for name, want in expected.items():
        assert getattr(stats, name) == pytest.approx(want.item(), rel=1e-4), name
    assert (stats.dual_clip_fraction > 0) == (dual_clip is not None)
    assert 0 < stats.clip_fraction < 1 and stats.ptx_loss != pytest.approx(stats.entropy, rel=0.1)


@pytest.mark.parametrize("network", ["policy", "value"])
def test_a_loss_of_either_network_that_is_not_finite_steps_neither_and_leaves_no_gradient(batch, network):
    s = batch.scored
    broken = s.reference_logprobs.clone()
    if network == "policy":
        broken[0, 0] = math.nan
        scored = ScoredBatch(s.rewarded, s.old_logprobs, broken, s.old_values, s.rewards)
        bad = TrainBatch(scored, batch.advantages, batch.returns)
    else:
        returns = batch.returns.clone()
        returns[0, 0] = math.inf
        bad = TrainBatch(s, batch.advantages, returns)
    policy, value = engines(build_policy(SHAPE, V, torch.float32, 1, "chunked"))
    stats = ppo_update(policy, value, packed(bad), COEFFICIENTS, settings(), 0, torch.Generator(), ALONE)
    assert (stats.steps, stats.skipped) == (0, 1)
    told = {"policy": "kl_reference_k3", "value": "value_loss"}[network]
    assert told in stats.not_finite and "the loss of rank 0" in stats.not_finite
    nothing_was_done(policy, value)


def nothing_was_done(policy: SingleEngine, value: SingleEngine) -> None:
    untouched = engines(build_policy(SHAPE, V, torch.float32, 1, "chunked"))
    for mine, other in zip((policy, value), untouched, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine.parameters, other.parameters, strict=True))
        assert all(p.grad is None for p in mine.parameters)
        assert not mine.optimizer.state


@pytest.mark.parametrize("network", ["policy", "value"])
def test_a_gradient_of_either_network_that_is_not_finite_though_all_losses_are_steps_neither(batch, network):
    policy, value = engines(build_policy(SHAPE, V, torch.float32, 1, "chunked"))
    trained = policy if network == "policy" else value
    trained.parameters[0].register_hook(lambda gradient: gradient * math.inf)
    stats = ppo_update(policy, value, packed(batch), COEFFICIENTS, settings(), 0, torch.Generator(), ALONE)
    assert (stats.steps, stats.skipped, stats.not_finite) == (0, 1, (f"{network}_grad_norm",))
    nothing_was_done(policy, value)


def test_the_early_stop_reads_k3_of_old_against_new_over_all_tokens(batch):
    """The KL after one epoch, by hand, is where the second epoch begins or not."""
    policy, value = engines(build_policy(SHAPE, V, torch.float32, 1, "chunked"))
    own = scored_by(policy, batch)
    ppo_update(policy, value, packed(own, 2), COEFFICIENTS, settings(), 0, torch.Generator().manual_seed(0), ALONE)
    now = response_logprobs(policy, batch.scored.rollouts, TAU, ptx=True)
    r = (now - own.scored.old_logprobs)[batch.scored.rollouts.mask].double()
    k3 = (r.exp() - 1 - r).mean().item()
    for bound, epochs in [(0.99 * k3, 1), (1.01 * k3, 2)]:
        policy, value = engines(build_policy(SHAPE, V, torch.float32, 1, "chunked"))
        order = torch.Generator().manual_seed(0)
        stats = ppo_update(
            policy,
            value,
            packed(own, 2),
            COEFFICIENTS,
            settings(epochs=2, early_stop_kl=bound),
            0,
            order,
            ALONE,
        )
        assert stats.epochs == epochs


def test_the_kl_to_the_reference_is_zero_against_itself_and_k3_by_hand_elsewhere(batch):
    policy, _ = engines(build_policy(SHAPE, V, torch.float32, 1, "chunked"))
    own = scored_by(policy, batch)
    minibatches = [m.map(lambda train: train.scored) for m in packed(own)]
    assert kl_to_reference(policy, minibatches, TAU, ALONE) == pytest.approx(0, abs=1e-9)
    minibatches = [m.map(lambda train: train.scored) for m in packed(batch)]
    mask = batch.scored.rollouts.mask
    r = (batch.scored.reference_logprobs - own.scored.old_logprobs)[mask].double()
    assert kl_to_reference(policy, minibatches, TAU, ALONE) == pytest.approx((r.exp() - 1 - r).mean().item(), rel=1e-5)
