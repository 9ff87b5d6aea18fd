"""Prompts and continuations of any length in one batch, against each rollout by itself and without padding."""

import sys
import types

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, LlamaForCausalLM

from destruct.batch import PromptBatch, RewardedBatch, RolloutBatch
from destruct.config.deepspeed import Optimizer
from destruct.config.model import PolicyShape
from destruct.engine.single import SingleEngine, SingleFrozen
from destruct.engine.topology import Topology
from destruct.minibatch import FORWARD_TOKENS, Minibatch
from destruct.models.policy import PolicyNetwork, build_policy, llama_config
from destruct.models.value import build_value
from destruct.rollout.generate import Sampling, generate, sample_responses
from destruct.rollout.packing import pack
from destruct.rollout.per_position import draw_everywhere
from destruct.rollout.reward_model import reward_model
from destruct.rollout.rewards import REWARDS, RewardContext
from destruct.rollout.sampling import inverse_cdf
from destruct.rollout.score import ScoreSettings, policy_inputs, score
from destruct.rollout.user_terms import user_term
from destruct.seeding import uniform

V, P, R, B = 40, 6, 5, 12
ALONE = Topology(0, 1, torch.device("cpu"))
HOW = Sampling(0.7, eos_id=17, pad_id=1)
SHAPE = PolicyShape(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, initializer_range=0.4
)
PROMPTS = torch.tensor([6, 1, 2, 5, 3, 4, 6, 1, 1, 2, 6, 3])
CONTINUATIONS = torch.tensor([5, 0, 3, 1, 5, 2, 4, 0, 5, 1, 0, 3])


def network(dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> PolicyNetwork:
    return build_policy(SHAPE, V, dtype, 0, "chunked", attention)


def prompts(padding: int = 0) -> PromptBatch:
    """`padding` is a seed: what stands around prompts and continuations, and nothing else."""
    windows = torch.randint(4, V, (B, P + R), generator=torch.Generator().manual_seed(1))
    noise = torch.randint(0, V, (B, P + R), generator=torch.Generator().manual_seed(100 + padding))
    column = torch.arange(P + R)
    real = (column >= P - PROMPTS[:, None]) & (column < P + CONTINUATIONS[:, None])
    windows = torch.where(real, windows, noise)
    return PromptBatch(2, P, windows, PROMPTS, CONTINUATIONS, torch.zeros(B, dtype=torch.int64), torch.arange(B) + 7)


def plain(network: PolicyNetwork) -> LlamaForCausalLM:
    """transformers' own model with the same weights, in float64."""
    lm = LlamaForCausalLM._from_config(llama_config(SHAPE, V), dtype=torch.float64)
    lm.load_state_dict({n.removeprefix("lm."): p.double() for n, p in network.named_parameters()}, strict=False)
    return lm


def random_numbers(batch: PromptBatch, seed: int) -> Tensor:
    return torch.from_numpy(uniform(seed, batch.draw, batch.sample.numpy(), torch.arange(R).numpy()))


def learned_positions() -> PolicyNetwork:
    """Rotary positions are relative, and would not tell of a prompt that begins elsewhere than at 0."""
    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=V, initializer_range=0.4)
    return PolicyNetwork(AutoModelForCausalLM.from_config(config, dtype=torch.float32), "chunked")


@pytest.mark.parametrize("make", [network, lambda: network(attention="eager"), learned_positions])
def test_a_response_after_a_padded_prompt_is_that_after_the_bare_prompt_alone(make):
    """Token for token; the bare prompt goes through the call without a mask."""
    replica, batch = make(), prompts()
    rollouts, numbers = generate(replica, batch, ALONE, 5, HOW), random_numbers(batch, 5)
    for row, prompt in enumerate(batch.prompt_ids()):
        bare, length, stopped = sample_responses(replica, torch.tensor([prompt]), numbers[row : row + 1], HOW)
        assert torch.equal(rollouts.responses[row], bare[0])
        assert (rollouts.lengths[row], rollouts.stopped[row]) == (length, stopped)
    assert len(set(rollouts.lengths.tolist())) > 1
    assert torch.equal(rollouts.tokens[:, :P], batch.windows[:, :P])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_padding_before_a_prompt_neither_shows_nor_makes_anything_infinite(attention, dtype):
    """A row of padding sees nothing at all: its softmax is over masked scores alone, which must not become NaN."""
    replica, states = network(dtype, attention), []
    for layer in replica.body.layers:
        layer.register_forward_hook(lambda module, inputs, output: states.append(output))
    rollouts = [generate(replica, prompts(padding), ALONE, 5, HOW) for padding in range(3)]
    assert states and all(torch.isfinite(state).all() for state in states)
    assert all(torch.equal(rollouts[0].responses, other.responses) for other in rollouts[1:])


def test_full_prompts_get_no_mask_and_a_rank_whose_own_are_full_gets_one(monkeypatch):
    """Two ranks share 12 prompts; those of the second are all full, those of the first not."""
    replica, masks = network(), []
    replica.body.register_forward_pre_hook(
        lambda _, args, named: masks.append(named["attention_mask"]), with_kwargs=True
    )
    batch = prompts()
    generate(replica, batch.select(torch.tensor([0, 6, 10])), ALONE, 5, HOW)
    assert masks and all(mask is None for mask in masks)
    masks.clear()
    monkeypatch.setattr(Topology, "interleave", lambda self, x: torch.stack([x, x], 1).flatten(0, 1))
    halves = batch.select(torch.tensor([1, 0, 2, 6, 3, 10]))
    generate(replica, halves, Topology(1, 2, torch.device("cpu")), 5, HOW)
    assert masks and all(mask.dtype == torch.int64 and not mask.all() for mask in masks)


@torch.no_grad()
def test_a_token_at_a_position_is_that_drawn_in_its_own_text_alone():
    """Against a plain model that reads prompt and continuation so far, without padding."""
    replica, batch = network(), prompts()
    rollouts, numbers = draw_everywhere(replica, batch, ALONE, 5, 0.7), random_numbers(batch, 5)
    assert torch.equal(rollouts.mask, batch.continuation_mask)
    assert rollouts.lengths.tolist() == CONTINUATIONS.tolist() and not rollouts.stopped.any()
    model = plain(replica)
    for row, (prompt, truth) in enumerate(zip(batch.prompt_ids(), batch.continuation_ids(), strict=True)):
        for t in range(len(truth)):
            logits = model(torch.tensor([prompt + truth[:t]])).logits[:, -1]
            assert inverse_cdf(logits, 0.7, numbers[row, t][None]).item() == rollouts.responses[row, t]
    again = draw_everywhere(replica, prompts(padding=1), ALONE, 5, 0.7)
    assert torch.equal(again.responses[again.mask], rollouts.responses[rollouts.mask])


def test_rows_of_prompts_and_continuations_of_several_lengths_by_hand():
    """Row 2: a prompt of 2 tokens, 2 of a response, a continuation of 3; row 1: 1, 1 and none.

    States 1 and 2 of the first sequence and 0 of the second predict responses; the window of row 2 is the third, and
    the widest: 5 columns.
    """
    batch = prompts().select(torch.tensor([2, 1]))
    mask = torch.arange(R) < torch.tensor([[2], [1]])
    rollouts = RolloutBatch(batch, torch.full((2, R), 9), mask, torch.zeros(2) > 0, teacher_forced=False)
    inputs = policy_inputs(rollouts, temperature=0.5, ptx=True)
    prompt, other = batch.prompt_ids()
    assert inputs.tokens.shape == (3, 5) and inputs.tokens[2].tolist() == prompt + batch.continuation_ids()[0]
    assert inputs.tokens[0, :4].tolist() == [*prompt, 9, 9] and inputs.tokens[1, :2].tolist() == [*other, 9]
    assert inputs.rows.tolist() == [1, 2, 5, 11, 12, 13]
    assert inputs.targets.tolist() == [9, 9, 9, *batch.continuation_ids()[0]]
    assert inputs.is_response.tolist() == [True] * 3 + [False] * 3
    without = policy_inputs(rollouts.select(torch.tensor([1])), 0.5, ptx=True)
    assert without.rows.tolist() == [0] and without.tokens.tolist() == [[*other, 9]]


def rewarded(*parts: RolloutBatch, padded_tokens: int = 0) -> Minibatch[RewardedBatch]:
    """With padded_tokens = 0 all micro-batches are read together."""
    zeros = [torch.zeros(part.mask.shape) for part in parts]
    micro = (RewardedBatch(part, zero, zero[:, 0], zero[:, :1]) for part, zero in zip(parts, zeros, strict=True))
    return Minibatch(tuple(micro), 0, 0, padded_tokens)


def networks() -> tuple[SingleEngine, SingleFrozen, SingleEngine]:
    """Policy, reference and value network."""
    value = build_value(SHAPE, V, torch.float32, 2)
    torch.nn.init.normal_(value.head.weight, std=0.5, generator=torch.Generator().manual_seed(3))
    frozen = SingleFrozen(build_policy(SHAPE, V, torch.float32, 1, "chunked"))
    return SingleEngine(network(), Optimizer(), 1, 1.0), frozen, SingleEngine(value, Optimizer(), 1, 1.0)


def sampled(policy: PolicyNetwork, teacher_forced: bool) -> RolloutBatch:
    if teacher_forced:
        return draw_everywhere(policy, prompts(), ALONE, 5, 0.7)
    return generate(policy, prompts(), ALONE, 5, HOW)


@pytest.mark.parametrize("teacher_forced", [False, True])
@torch.no_grad()
def test_logprobs_and_values_are_the_models_own_on_the_bare_sequence(teacher_forced):
    engines = networks()
    policy, frozen, value = (engine.module for engine in engines)
    settings = ScoreSettings(0.7, ptx=True, kl_coef=0.0, exact_kl=True)
    rollouts = sampled(policy, teacher_forced)
    (scored,) = score(rewarded(rollouts), *engines, settings).micro_batches
    first = torch.cat([torch.zeros(1, dtype=torch.int64), rollouts.lengths.cumsum(0)])
    models = plain(policy), plain(frozen)
    bodies = value.body
    pairs = zip(rollouts.prompts.prompt_ids(), rollouts.prompts.continuation_ids(), strict=True)
    for row, ((prompt, truth), said) in enumerate(zip(pairs, rollouts.response_ids(), strict=True)):
        if not said:
            continue
        tokens = torch.tensor([prompt + (truth if teacher_forced else said)])
        states = slice(len(prompt) - 1, len(prompt) - 1 + len(said))
        for model, got in zip(models, (scored.old_logprobs, scored.reference_logprobs), strict=True):
            logprobs = (model(tokens).logits[0, states] / 0.7).log_softmax(-1)
            want = logprobs.gather(1, torch.tensor(said)[:, None])[:, 0]
            torch.testing.assert_close(got[row, : len(said)].double(), want, atol=1e-5, rtol=1e-5)
        hidden = bodies(input_ids=tokens, use_cache=False).last_hidden_state[0, states]
        torch.testing.assert_close(scored.old_values[row, : len(said)], value.head(hidden), atol=1e-5, rtol=0)
        kept = scored.reference_states[first[row] : first[row + 1]]
        torch.testing.assert_close(
            kept.double(), models[1].model(tokens).last_hidden_state[0, states], atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("teacher_forced", [False, True])
@torch.no_grad()
def test_micro_batches_that_are_read_together_are_scored_as_each_by_itself(teacher_forced):
    """One of them is empty; the old logprobs are those of a forward over one micro-batch, to the last bit."""
    engines = networks()
    policy, frozen, value = (engine.module for engine in engines)
    settings = ScoreSettings(0.7, ptx=True, kl_coef=0.3, exact_kl=True)
    rollouts = sampled(policy, teacher_forced)
    parts = [rollouts.select(torch.arange(B)[rows]) for rows in (slice(0, 5), slice(0, 0), slice(5, 12))]
    forwards = []
    value.register_forward_hook(lambda *_: forwards.append(1))
    alone = score(rewarded(*parts, padded_tokens=FORWARD_TOKENS), *engines, settings).micro_batches
    assert len(forwards) == 3
    at_once = score(rewarded(*parts, padded_tokens=FORWARD_TOKENS // 3), *engines, settings).micro_batches
    assert len(forwards) == 4
    for one, other in zip(alone, at_once, strict=True):
        assert torch.equal(one.old_logprobs, other.old_logprobs)
        for name in ("reference_logprobs", "old_values", "rewards", "reference_states"):
            torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=2e-6, rtol=1e-6)


def test_a_minibatch_divides_by_the_continuation_tokens_that_are_there():
    rollouts = generate(network(), prompts(), ALONE, 5, HOW)
    packed = pack(rollouts, torch.arange(B), 2, 2, ALONE)
    assert [minibatch.continuation_tokens for minibatch in packed] == [5 + 0 + 3 + 1 + 5 + 2, 4 + 0 + 5 + 1 + 0 + 3]
    without = rollouts.select(torch.tensor([1, 7, 10]))
    assert pack(without, torch.arange(3), 1, 2, ALONE)[0].continuation_tokens == 0


class Letters:
    def decode(self, ids):
        return "".join(chr(97 + token) for token in ids)


def three() -> RolloutBatch:
    """Prompts "b", "cd", "efg"; continuations "hi", none, "j"; responses "hh", "k", "lj"; "x" is padding."""
    x = 23
    windows = torch.tensor([[x, x, 1, 7, 8, x], [x, 2, 3, x, x, x], [4, 5, 6, 9, x, x]])
    lengths = torch.tensor([1, 2, 3]), torch.tensor([2, 0, 1])
    batch = PromptBatch(0, 3, windows, *lengths, torch.zeros(3, dtype=torch.int64), torch.arange(3))
    responses = torch.tensor([[7, 7, x], [10, x, x], [11, 9, x]])
    mask = torch.arange(3) < torch.tensor([[2], [1], [2]])
    return RolloutBatch(batch, responses, mask, torch.zeros(3) > 0, teacher_forced=False)


def test_reward_terms_read_real_tokens_alone_and_overlap_is_0_without_a_continuation():
    """{h,h} and {h,i} share h: 2*1/4; {l,j} and {j} share j: 2*1/3.  Only the first h stands where the text has it.

    In the last place of every row, padding equals padding, and that is no match.
    """
    context = RewardContext(2, Letters())
    assert REWARDS["continuation_overlap"].measure(three(), context).tolist() == pytest.approx([0.5, 0.0, 2 / 3])
    assert REWARDS["match"].measure(three(), context).tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_a_reward_model_reads_prompt_and_response_without_padding():
    texts = []

    def reader(asked):
        texts.extend(asked)
        return [[1]] * len(asked)

    term = reward_model(lambda tokens, mask: torch.zeros(len(tokens)), reader)
    term.measure(three(), RewardContext(2, Letters()))
    assert texts == ["bhh", "cdk", "efglj"]


def test_the_users_function_gets_an_empty_text_where_there_is_no_continuation(monkeypatch):
    seen, module = [], types.ModuleType("my_rewards")
    module.tell = lambda *texts: seen.append(texts) or [0.0] * 3
    monkeypatch.setitem(sys.modules, "my_rewards", module)
    user_term("my_rewards:tell").measure(three(), RewardContext(2, Letters()))
    assert seen == [(["b", "cd", "efg"], ["hh", "k", "lj"], ["hi", "", "j"])]
