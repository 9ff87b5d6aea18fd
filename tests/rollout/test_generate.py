"""Sampling on the replica: the inverse CDF, stopping, and independence of how rows are grouped."""

import dataclasses

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from destruct.batch import PromptBatch
from destruct.config.model import PolicyShape
from destruct.data.embedded import EMBEDDED
from destruct.data.tokenizing import Tokenizer, train_tokenizer
from destruct.engine.topology import Topology
from destruct.models.policy import build_policy, llama_config
from destruct.ops.rows import LogitMap
from destruct.rollout.generate import Sampling, generate, sample_responses, sampling
from destruct.rollout.sampling import inverse_cdf

V = 40
SHAPE = PolicyShape(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, initializer_range=0.4
)


@pytest.fixture(scope="module")
def replica():
    return build_policy(SHAPE, V, torch.float32, 0, "chunked")


def sample(replica, prompts, uniforms, temperature=0.7, eos=3):
    return sample_responses(replica, prompts, uniforms, Sampling(temperature, eos_id=eos, pad_id=1))[:2]


def test_theinverse_cdf_picks_the_token_whose_share_holds_the_number():
    logits = torch.log(torch.tensor([[0.5, 0.0, 0.3, 0.2]])).expand(5, 4)
    u = torch.tensor([0.0, 0.49, 0.51, 0.79, 0.999999], dtype=torch.float64)
    assert inverse_cdf(logits, 1.0, u).tolist() == [0, 0, 2, 2, 3], "token 1 has no share"


def test_theinverse_cdf_divides_the_logits_by_the_temperature():
    """At temperature 1/2 the odds 2:1 become 4:1."""
    logits = torch.log(torch.tensor([[2.0, 1.0]])).expand(2, 2)
    u = torch.tensor([0.79, 0.81], dtype=torch.float64)
    assert inverse_cdf(logits, 0.5, u).tolist() == [0, 1]


def test_the_frequencies_of_sampled_tokens_are_the_models_probabilities(replica):
    """4,000 first tokens after one prompt against the softmax of a plain transformers model with the same weights."""
    plain = LlamaForCausalLM._from_config(llama_config(SHAPE, V))
    plain.load_state_dict({n.removeprefix("lm."): p for n, p in replica.named_parameters()}, strict=False)
    prompts = torch.tensor([[5, 9, 2]]).expand(4000, 3)
    uniforms = torch.from_numpy(np.random.default_rng(0).random((4000, 1)))
    tokens, _ = sample(replica, prompts, uniforms)
    with torch.no_grad():
        expected = torch.softmax(plain(prompts[:1]).logits[0, -1] / 0.7, -1)
    observed = torch.bincount(tokens[:, 0], minlength=V) / 4000
    # Four standard deviations of a binomial share.
    assert torch.all((observed - expected).abs() <= 4 * torch.sqrt(expected * (1 - expected) / 4000) + 1e-3)


def test_a_model_that_scales_its_logits_speaks_with_the_scaled_ones(replica, monkeypatch):
    """Twice the logits are half the temperature."""
    g = np.random.default_rng(6)
    prompts, uniforms = torch.from_numpy(g.integers(4, V, (16, 5))), torch.from_numpy(g.random((16, 10)))
    want, other = sample(replica, prompts, uniforms, temperature=0.35)[0], sample(replica, prompts, uniforms)[0]
    monkeypatch.setattr(replica.head, "logit_map", LogitMap(scale=2.0))
    assert torch.equal(sample(replica, prompts, uniforms)[0], want) and not torch.equal(want, other)


def test_a_response_ends_with_eos_and_is_padded_after_it(replica):
    g = np.random.default_rng(1)
    prompts = torch.from_numpy(g.integers(4, V, (64, 5)))
    tokens, lengths = sample(replica, prompts, torch.from_numpy(g.random((64, 12))))
    assert lengths.min() < 12 and lengths.max() == 12
    for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True):
        assert 3 not in row[: length - 1]
        assert row[length:] == [1] * (12 - length)
        assert length == 12 or row[length - 1] == 3


def test_a_rollout_does_not_depend_on_the_rows_beside_it(replica):
    """All rows at once, one by one, and in reverse give the same tokens: what equality over world sizes rests on."""
    g = np.random.default_rng(2)
    prompts, uniforms = torch.from_numpy(g.integers(4, V, (8, 5))), torch.from_numpy(g.random((8, 10)))
    together, _ = sample(replica, prompts, uniforms)
    alone = [sample(replica, prompts[i : i + 1], uniforms[i : i + 1])[0] for i in range(8)]
    backwards, _ = sample(replica, prompts.flip(0), uniforms.flip(0))
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(together, backwards.flip(0))


def test_the_cache_changes_nothing(replica):
    """Each sampled token is what the inverse CDF picks from a forward over the whole prefix, without a cache."""
    g = np.random.default_rng(3)
    prompts, uniforms = torch.from_numpy(g.integers(4, V, (4, 5))), torch.from_numpy(g.random((4, 6)))
    tokens, lengths = sample(replica, prompts, uniforms)
    whole = torch.cat([prompts, tokens], 1)
    with torch.no_grad():
        hidden = replica.lm.model(input_ids=whole, use_cache=False).last_hidden_state
        logits = replica.lm.lm_head(hidden)[:, 4:-1]
    for row in range(4):
        for t in range(int(lengths[row])):
            assert inverse_cdf(logits[row, t][None], 0.7, uniforms[row, t][None]).item() == tokens[row, t]


def prompts_of(samples: list[int], draw: int = 0) -> PromptBatch:
    """One prompt for all, so that a response depends on its address alone; P = 5, R = 12."""
    windows = torch.arange(4, 21).expand(len(samples), 17)
    return PromptBatch.full(draw, 5, windows, torch.zeros(len(samples), dtype=torch.int64), torch.tensor(samples))


def rolled_out(replica, samples: list[int], draw: int = 0, seed: int = 0):
    alone = Topology(0, 1, torch.device("cpu"))
    return generate(replica, prompts_of(samples, draw), alone, seed, Sampling(0.7, eos_id=3, pad_id=1))


def test_the_mask_holds_the_sampled_tokens_with_eos_and_stopped_says_whether_there_is_one(replica):
    """300 rollouts: some end at once, some on the very last place, some are cut."""
    rollouts = rolled_out(replica, list(range(300)))
    responses = rollouts.responses.tolist()
    ends = [row.index(3) + 1 if 3 in row else 12 for row in responses]
    assert rollouts.mask.tolist() == [[t < end for t in range(12)] for end in ends]
    assert rollouts.stopped.tolist() == [3 in row for row in responses]
    assert {1, 12} <= set(ends) and any(row[-1] == 3 for row in responses) and not all(rollouts.stopped)
    assert torch.equal(rollouts.tokens[:, :5], rollouts.prompts.windows[:, :5])


def test_a_rollout_is_addressed_by_seed_draw_and_sample_and_by_nothing_else(replica):
    here = rolled_out(replica, [10, 11, 12]).tokens
    assert torch.equal(rolled_out(replica, [12, 10]).tokens, here[[2, 0]]), "not by its place in the batch"
    assert len({tuple(row) for row in here.tolist()}) == 3
    for other in (rolled_out(replica, [10, 11, 12], draw=1), rolled_out(replica, [10, 11, 12], seed=1)):
        assert not torch.equal(other.tokens, here)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.trained(train_tokenizer(EMBEDDED["prose"](20_000, 0), 300))


def first_end(tokenizer, tokens: list[int], stop: list[str]) -> int:
    """Tokens until a stop string is complete in the decoded text, all of them where none is."""
    lengths = range(1, len(tokens) + 1)
    return next((n for n in lengths if any(s in tokenizer.decode(tokens[:n]) for s in stop)), len(tokens))


def test_a_response_ends_with_the_token_that_completes_a_stop_string(tokenizer):
    """Against a search in the decoded text of the same responses sampled without an end."""
    stop = ("t", "in")  # no special token is spelt with these: the name of one counts as text
    replica = build_policy(SHAPE, tokenizer.vocab_size, torch.float32, 0, "chunked")
    g = np.random.default_rng(4)
    prompts, u = torch.from_numpy(g.integers(2, 300, (40, 6))), torch.from_numpy(g.random((40, 10)))
    how = sampling(tokenizer, 1.0, stop)
    free, _, _ = sample_responses(replica, prompts, u, Sampling(1.0, eos_id=-1, pad_id=1))
    responses, lengths, stopped = sample_responses(replica, prompts, u, dataclasses.replace(how, eos_id=-1))
    ends = [first_end(tokenizer, row, list(stop)) for row in free.tolist()]
    assert lengths.tolist() == ends and len(set(ends)) > 1
    for row, whole, end in zip(responses.tolist(), free.tolist(), ends, strict=True):
        assert row == whole[:end] + [tokenizer.pad_id] * (10 - end)
    said = [any(s in tokenizer.decode(row[:end]) for s in stop) for row, end in zip(free.tolist(), ends, strict=True)]
    assert stopped.tolist() == said and not all(said) and any(said)


def test_without_stop_strings_eos_alone_ends_a_response(tokenizer):
    assert sampling(tokenizer, 0.5, ()) == Sampling(0.5, tokenizer.eos_id, tokenizer.pad_id, None)


def test_activation_checkpointing_leaves_the_cache_in_place_and_training_on(replica):
    """transformers turns the cache off where a model in training checkpoints: each step would see one token alone."""
    g = np.random.default_rng(5)
    prompts, uniforms = torch.from_numpy(g.integers(4, V, (4, 5))), torch.from_numpy(g.random((4, 6)))
    saving = build_policy(SHAPE, V, torch.float32, 0, "chunked", checkpointing=True)
    assert torch.equal(sample(saving, prompts, uniforms)[0], sample(replica, prompts, uniforms)[0])
    assert saving.training


def test_a_rank_whose_responses_have_all_ended_goes_on_with_the_others(replica):
    """Every row ends with its third token, by a stop text or by eos; the other ranks want all twelve."""
    g = np.random.default_rng(7)
    prompts, u = torch.from_numpy(g.integers(4, V, (5, 4))), torch.from_numpy(g.random((5, 12)))
    calls = []
    hook = replica.body.register_forward_hook(lambda *_: calls.append(1))
    how = Sampling(0.7, eos_id=-1, pad_id=1, ends=lambda said: torch.full((len(said),), said.shape[1] == 3))
    responses, lengths, stopped = sample_responses(replica, prompts, u, how, go_on=lambda alive: True)
    hook.remove()
    assert len(calls) == 12 and lengths.tolist() == [3] * 5 and stopped.all()
    free, _, _ = sample_responses(replica, prompts, u, Sampling(0.7, eos_id=-1, pad_id=1))
    assert torch.equal(responses[:, :3], free[:, :3]) and (responses[:, 3:] == 1).all()
