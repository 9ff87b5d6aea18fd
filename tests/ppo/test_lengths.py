"""An update on prompts and continuations of any length, against the formulas on each rollout by itself."""

import dataclasses

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from destruct.batch import PromptBatch, TrainBatch
from destruct.models.policy import build_policy, llama_config
from destruct.models.value import build_value
from destruct.ppo.distance import kl_to_reference
from destruct.ppo.update import accumulate, loss_rows, ppo_update
from tests.ppo.rollouts import (
    ALONE,
    COEFFICIENTS,
    FLOAT32,
    LENGTHS,
    PTX,
    SHAPE,
    TAU,
    B,
    P,
    R,
    V,
    engines,
    make_batch,
    packed,
    settings,
)

PROMPTS = torch.tensor([5, 1, 3, 2, 5, 4, 1, 2])
CONTINUATIONS = torch.tensor([6, 0, 3, 1, 0, 5, 2, 6])


def prompts_with(padding: int, continuations: Tensor = CONTINUATIONS):
    """What stands in the padding of the windows is drawn by the seed `padding`."""

    def prompts(windows: Tensor) -> PromptBatch:
        column = torch.arange(P + R)
        real = (column >= P - PROMPTS[:, None]) & (column < P + continuations[:, None])
        noise = torch.randint(0, V, (B, P + R), generator=torch.Generator().manual_seed(padding))
        number = torch.arange(B)
        return PromptBatch(0, P, torch.where(real, windows, noise), PROMPTS, continuations, number % 2, number)

    return prompts


def gradients(batch: TrainBatch, accumulation: int = 2, **changes) -> list[dict[str, Tensor]]:
    """Of policy and value."""
    networks = engines(build_policy(SHAPE, V, torch.float32, 1, "chunked"), accumulation)
    (minibatch,) = packed(batch, accumulation=accumulation)
    accumulate(*networks, minibatch, COEFFICIENTS, settings(**changes), ALONE.device)
    return [{name: p.grad for name, p in engine.module.named_parameters()} for engine in networks]


def textbook_policy_loss(lm: LlamaForCausalLM, batch: TrainBatch) -> Tensor:
    """As in test_update.py, on bare sequences: eq. 7 of 1707.06347, k2, entropy and PTX, full logits."""
    s, prompts = batch.scored, batch.scored.rollouts.prompts
    total, nll = [], []
    for row, (prompt, said, truth) in enumerate(
        zip(prompts.prompt_ids(), s.rollouts.response_ids(), prompts.continuation_ids(), strict=True)
    ):
        n, begin = len(said), len(prompt) - 1
        logprobs = (lm(torch.tensor([prompt + said])).logits[0, begin:-1] / TAU).log_softmax(-1)
        chosen = logprobs.gather(1, torch.tensor(said)[:, None])[:, 0]
        entropy = -(logprobs.exp() * logprobs).sum(-1)
        ratio, a = torch.exp(chosen - s.old_logprobs[row, :n].double()), batch.advantages[row, :n].double()
        k2 = (chosen - s.reference_logprobs[row, :n].double()).square() / 2
        total.append(-torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a) + 0.07 * k2 - 0.02 * entropy)
        logits = lm(torch.tensor([prompt + truth])).logits[0, begin:-1] if truth else torch.zeros(0, V).double()
        nll.append(torch.nn.functional.cross_entropy(logits, torch.tensor(truth).long(), reduction="none"))
    return torch.cat(total).mean() + PTX * torch.cat(nll).sum() / max(1, len(torch.cat(nll)))


@pytest.mark.parametrize("continuations", [CONTINUATIONS, torch.zeros_like(CONTINUATIONS)])
def test_the_policys_gradient_is_that_of_bare_sequences_one_at_a_time(continuations):
    """With continuations of 0 to 6 tokens, and without any: PTX then has no part in it."""
    batch = make_batch(prompts_with(0, continuations))
    network = build_policy(SHAPE, V, torch.float32, 1, "chunked")
    plain = LlamaForCausalLM._from_config(llama_config(SHAPE, V), dtype=torch.float32)
    plain.load_state_dict({n.removeprefix("lm."): p for n, p in network.named_parameters()}, strict=False)
    plain = plain.double()
    textbook_policy_loss(plain, batch).backward()
    expected = dict(plain.named_parameters())
    for name, gradient in gradients(batch)[0].items():
        want = expected[name.removeprefix("lm.")].grad
        assert (gradient.double() - want).norm() <= FLOAT32 * want.norm(), name


def test_the_value_networks_gradient_is_that_of_bare_sequences_one_at_a_time():
    batch = make_batch(prompts_with(0))
    network = build_value(SHAPE, V, torch.float32, 2)
    torch.nn.init.normal_(network.head.weight, std=0.5, generator=torch.Generator().manual_seed(3))
    network, losses, rollouts = network.double(), [], batch.scored.rollouts
    pairs = zip(rollouts.prompts.prompt_ids(), rollouts.response_ids(), strict=True)
    for row, (prompt, said) in enumerate(pairs):
        n, tokens = len(said), torch.tensor([prompt + said])
        hidden = network.body(input_ids=tokens, use_cache=False).last_hidden_state[0, len(prompt) - 1 : -1]
        values = (hidden @ network.head.weight.T + network.head.bias).squeeze(-1)
        old, returns = batch.scored.old_values[row, :n].double(), batch.returns[row, :n].double()
        clipped = old + (values - old).clamp(-0.2, 0.2)
        losses.append(torch.maximum((values - returns).square(), (clipped - returns).square()) / 2)
    torch.cat(losses).mean().backward()
    got = gradients(batch)[1]
    for name, p in network.named_parameters():
        assert (got[name].double() - p.grad).norm() <= FLOAT32 * p.grad.norm(), name


def test_how_rollouts_are_split_into_micro_batches_changes_nothing():
    """One, two, and twelve, of which four are empty; an empty one and one without a continuation are among them."""
    whole, *others = [gradients(make_batch(prompts_with(0)), accumulation) for accumulation in (1, 2, 12)]
    for split in others:
        for want, got in zip(whole, split, strict=True):
            for name, gradient in want.items():
                assert (got[name] - gradient).norm() <= FLOAT32 * gradient.norm(), name


def test_what_stands_in_the_padding_changes_no_bit():
    for want, got in zip(*(gradients(make_batch(prompts_with(padding))) for padding in (0, 1)), strict=True):
        assert all(torch.equal(got[name], gradient) for name, gradient in want.items())


def test_weights_divide_by_the_continuation_tokens_that_are_there_and_by_1_where_there_are_none():
    """23 of 48; the 33 sampled tokens are divided by as before."""
    batch = make_batch(prompts_with(0))
    (minibatch,) = packed(batch)
    assert (minibatch.response_tokens, minibatch.continuation_tokens) == (int(LENGTHS.sum()), 23)
    for train in minibatch.micro_batches:
        inputs, rows = loss_rows(train, minibatch, TAU, PTX)
        assert torch.unique(rows.policy_weight[inputs.is_response]).tolist() == pytest.approx([1 / 33])
        assert torch.unique(rows.ptx_weight[~inputs.is_response]).tolist() == pytest.approx([PTX / 23])
    (none,) = packed(make_batch(prompts_with(0, torch.zeros_like(CONTINUATIONS))))
    assert none.continuation_tokens == 0
    assert all(loss_rows(train, none, TAU, PTX)[0].is_response.all() for train in none.micro_batches)


def test_an_update_without_continuations_has_a_ptx_loss_of_0_and_without_any_token_no_gradient():
    order = torch.Generator()
    networks = engines(build_policy(SHAPE, V, torch.float32, 1, "chunked"))
    prompt_only = packed(make_batch(prompts_with(0, torch.zeros_like(CONTINUATIONS))))
    stats = ppo_update(*networks, prompt_only, COEFFICIENTS, settings(), 0, order, ALONE)
    assert stats.ptx_loss == 0 and stats.steps == 1 and stats.policy_grad_norm > 0
    # Every position of a text that has none, as rollouts per position may be.
    batch = make_batch(prompts_with(0, torch.zeros_like(CONTINUATIONS)))
    s, nothing = batch.scored, torch.zeros_like(batch.scored.rollouts.mask)
    silent = dataclasses.replace(s.rollouts, mask=nothing, teacher_forced=True)
    scored = dataclasses.replace(s, rewarded=dataclasses.replace(s.rewarded, rollouts=silent))
    parts = packed(dataclasses.replace(batch, scored=scored))
    stats = ppo_update(*networks, parts, COEFFICIENTS, settings(), 0, order, ALONE)
    assert (stats.policy_loss, stats.value_loss, stats.skipped) == (0, 0, 0)
    assert stats.policy_grad_norm == stats.value_grad_norm == 0
    assert kl_to_reference(networks[0], [m.map(lambda train: train.scored) for m in parts], TAU, ALONE) == 0
