"""The drift from where PPO began, and the KL to the initial model."""

import json

import pytest
import torch

from destruct.batch import PromptBatch, RolloutBatch
from destruct.drift import Probe, kl_from_initial, probe_from, probe_prompts
from destruct.loop import evaluate_update, one_update
from destruct.preparation import warm_up
from destruct.summarizing import summarize
from tests.tiny import tiny_run

pytestmark = pytest.mark.slow  # runs of several updates

MODES = ["rollout.mode=generate", "rollout.mode=per_position"]
MATCH = ["reward.terms={match: 1.0}"]


def options(mode: str) -> list[str]:
    return [mode, *(MATCH if mode.endswith("per_position") else [])]


def held_out(windows: torch.Tensor) -> PromptBatch:
    number = torch.arange(len(windows))
    return PromptBatch.full(0, 1, windows, number, number)


def test_the_probe_takes_turns_among_the_sources_and_divides_among_the_ranks():
    """Three windows of a, one of b: a0 b0 a1 a2, and again from the front to fill the ranks."""
    a, b = held_out(torch.arange(6).view(3, 2)), held_out(torch.tensor([[10, 11]]))
    cpu = torch.device("cpu")
    assert probe_prompts([a, b], 1, cpu).windows.tolist() == [[0, 1], [10, 11], [2, 3], [4, 5]]
    assert probe_prompts([a, b], 3, cpu).windows.tolist() == [[0, 1], [10, 11], [2, 3], [4, 5], [0, 1], [10, 11]]
    assert len(probe_prompts([held_out(torch.zeros(100, 2).long())] * 2, 3, cpu).windows) == 33


@pytest.mark.parametrize("mode", MODES)
def test_the_drift_is_0_when_ppo_begins_and_grows_with_it(tmp_path, mode):
    """Then against the estimator's formula on logprobs of the two models, tokens sampled by the first."""
    with tiny_run(tmp_path, *options(mode), "kl.reference=initial", "ppo.policy_lr=0.01") as run:
        warm_up(run)
        assert kl_from_initial(run.policy, run.probe, run.topology) == 0
        for _ in range(2):
            one_update(run)
        drift = kl_from_initial(run.policy, run.probe, run.topology)
        rollouts = run.probe.rollouts
        nats = []
        for network in (run.networks.initial.module, run.policy.module):
            with torch.no_grad():
                logits = network.lm(rollouts.tokens).logits[:, 7:-1].float()
            nats.append(logits.log_softmax(-1).gather(2, rollouts.responses[:, :, None]).squeeze(2))
        log_ratio = (nats[1] - nats[0])[rollouts.mask].double()
        # bfloat16 logits, rounded in products of another shape.
        assert drift == pytest.approx((log_ratio.exp() - 1 - log_ratio).mean().item(), rel=0.05)
        assert drift > 0.01
        evaluate_update(run)
        assert summarize(run).kl_from_initial == drift
    figures = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["kl/from_initial"] for line in figures if "kl/from_initial" in line][-1] == drift


@pytest.mark.parametrize("mode", MODES)
def test_the_probe_comes_back_from_its_state_to_the_last_bit(tmp_path, mode):
    with tiny_run(tmp_path, *options(mode)) as run:
        warm_up(run)
        probe = run.probe
    again = probe_from(json.loads(json.dumps(probe.state_dict())), torch.device("cpu"))
    assert isinstance(again, Probe) and torch.equal(again.logprobs, probe.logprobs)
    for name in ("tokens", "responses", "mask"):
        assert torch.equal(getattr(again.rollouts, name), getattr(probe.rollouts, name)), name


def test_the_probe_holds_prompts_and_continuations_of_any_length():
    """Prompts of 1 and 2 tokens, one without a continuation: the state gives back where they stand."""
    windows, number = torch.arange(10).view(2, 5), torch.arange(2)
    source = PromptBatch(0, 2, windows, torch.tensor([1, 2]), torch.tensor([3, 0]), number, number)
    prompts = probe_prompts([source, source], 1, torch.device("cpu"))
    assert prompts.prompt_ids() == [[1], [1], [5, 6], [5, 6]] and prompts.continuation_ids()[0::2] == [[2, 3, 4], []]
    assert prompts.sample.tolist() == [0, 1, 2, 3]
    mask = torch.arange(3) < torch.tensor([[1], [2], [3], [1]])
    rollouts = RolloutBatch(prompts, torch.ones(4, 3, dtype=torch.int64), mask, torch.zeros(4) > 0, False)
    state = Probe(rollouts, torch.zeros(4, 3), 0.7).state_dict()
    again = probe_from(json.loads(json.dumps(state)), torch.device("cpu")).rollouts
    for name in ("tokens", "mask", "continuations"):
        assert torch.equal(getattr(again, name), getattr(rollouts, name)), name
    for name in ("prompt_lengths", "continuation_lengths", "continuation_mask"):
        assert torch.equal(getattr(again.prompts, name), getattr(prompts, name)), name


def sampled_kl(folder, *overrides: str) -> list[float]:
    with tiny_run(folder, "frozen.refresh_every=2", "ppo.policy_lr=0.01", *overrides) as run:
        warm_up(run)
        for _ in range(5):
            one_update(run)
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    return [line["kl/sampled"] for line in lines if "kl/sampled" in line]


def test_the_kl_to_a_rolling_reference_falls_to_0_at_each_refresh_and_that_to_the_initial_model_never_does(tmp_path):
    """Rounds before updates 0, 2 and 4."""
    rolling = sampled_kl(tmp_path)
    initial = sampled_kl(tmp_path, "run.name=initial", "kl.reference=initial")
    assert [update for update, kl in enumerate(rolling) if kl == 0] == [0, 2, 4]
    assert [update for update, kl in enumerate(initial) if kl == 0] == [0]


def test_the_initial_model_comes_back_from_a_checkpoint(tmp_path):
    options = ["kl.reference=initial", "run.checkpoint_every=2", "ppo.policy_lr=0.01"]
    with tiny_run(tmp_path, *options) as run:
        warm_up(run)
        initial = {name: p.clone() for name, p in run.networks.initial.tensors_in_full()}
        for _ in range(2):
            one_update(run)
    with tiny_run(tmp_path, *options, "run.resume=auto") as again:
        now = dict(again.networks.initial.tensors_in_full())
        policy = dict(again.policy.tensors_in_full())
        assert again.probe is not None
    assert all(torch.equal(now[name], p) for name, p in initial.items())
    assert not all(torch.equal(now[name], p) for name, p in policy.items())
