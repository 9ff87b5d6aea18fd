"""What the loop writes down: figures by hand and over ranks, samples, and the summary."""

import dataclasses
import json
import math
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from destruct.batch import PromptBatch, RewardedBatch, RolloutBatch, ScoredBatch, TrainBatch
from destruct.curriculum.estimates import Estimates, Floats
from destruct.engine.topology import Topology
from destruct.loop import one_update
from destruct.minibatch import micro_batches
from destruct.recording import (
    _rollout_figures,
    explained_variance,
    feedback_per_source,
    record_round,
)
from destruct.rollout.score import with_advantages
from destruct.steps import draw, pack_and_score, roll_out
from destruct.summarizing import mean_over_sources, peak_rss_mib, summarize
from tests.curriculum.rounds import estimates_for
from tests.tiny import tiny_run


def test_the_reward_is_averaged_per_source_first_and_a_source_that_was_not_drawn_is_left_out():
    """Source a: (1 + 3) / (1 + 3) = 1; source b: 8 / 2 = 4; source c: nothing.  (1 + 4) / 2."""
    updates = [[[1.0, 1], [8.0, 2], [0.0, 0]], [[3.0, 3], [0.0, 0], [0.0, 0]]]
    assert mean_over_sources(updates) == 2.5


def test_the_reward_of_updates_whose_sources_are_all_gone_is_not_a_number():
    assert math.isnan(mean_over_sources([[[0.0, 0.0], [0.0, 0.0]]]))


STARTED_BY_A_LARGE_ONE = """
import subprocess, sys
held = b"1" * 2**31
code = "import torch; from destruct.engine.topology import Topology; from destruct.summarizing import peak_rss_mib; "
code += "held = b'1' * 2**28; print(peak_rss_mib(Topology(0, 1, torch.device('cpu'))))"
subprocess.run([sys.executable, "-c", code], check=True)
"""


@pytest.mark.slow
def test_the_peak_of_memory_is_the_processes_own_whatever_its_parent_holds():
    """256 MiB and what the imports take, below a process of 2 GiB."""
    done = subprocess.run([sys.executable, "-c", STARTED_BY_A_LARGE_ONE], capture_output=True, text=True, timeout=120)
    assert 256 < float(done.stdout) < 1536, done.stderr


def test_where_the_system_does_not_tell_the_peak_it_is_that_of_getrusage(monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda *_: "VmRSS:     1 kB\n")
    told = peak_rss_mib(Topology(0, 1, torch.device("cpu")))
    assert told == pytest.approx(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, rel=0.1)


def trained(returns: list[list[float]], values: list[list[float]], lengths: list[int]) -> TrainBatch:
    """Rollouts of which only returns, old values and lengths matter; P = 1."""
    b, r = len(returns), len(returns[0])
    windows = torch.zeros(b, r + 1, dtype=torch.int64)
    prompts = PromptBatch.full(0, 1, windows, torch.zeros(b, dtype=torch.int64), torch.arange(b))
    mask = torch.arange(r) < torch.tensor(lengths)[:, None]
    rollouts = RolloutBatch(prompts, windows[:, 1:], mask, torch.zeros(b, dtype=torch.bool), teacher_forced=False)
    zero, old = torch.zeros(b, r), torch.tensor(values)
    scored = ScoredBatch(RewardedBatch(rollouts, zero, torch.zeros(b), torch.zeros(b, 1)), zero, zero, old, zero)
    return TrainBatch(scored, zero, torch.tensor(returns))


def test_explained_variance_over_two_micro_batches_worked_by_hand():
    """Returns 1, 3, 5, 7 have variance 5; errors 0, 1, 0, 1 have 1/4: 1 - 1/20.  Padding (99) is not read."""
    batches = [
        trained([[1.0, 3.0]], [[1.0, 2.0]], [2]),
        trained([[5.0, 99.0], [7.0, 99.0]], [[5.0, 0.0], [6.0, 0.0]], [1, 1]),
    ]
    alone = Topology(0, 1, torch.device("cpu"))
    assert explained_variance(batches, alone) == pytest.approx(0.95)
    assert math.isnan(explained_variance([trained([[2.0, 2.0]], [[0.0, 1.0]], [2])], alone)), "constant returns"


def scored(lengths: list[int], stopped: list[bool], terms: list[list[float]]) -> ScoredBatch:
    """Rollouts whose sampled tokens lost half a nat against the reference's; what lies behind them is padding."""
    batch = trained([[0.0] * 4] * len(lengths), [[0.0] * 4] * len(lengths), lengths).scored
    rollouts = dataclasses.replace(batch.rollouts, stopped=torch.tensor(stopped))
    zero = batch.rewards
    rewarded = RewardedBatch(rollouts, zero, batch.rewarded.score, torch.tensor(terms))
    return ScoredBatch(rewarded, zero - 1.0, zero - 1.5, zero, zero)


def test_the_figures_of_rollouts_worked_by_hand(tmp_path):
    """Three rollouts of 2, 1 and 3 tokens, two of which ended by themselves; the policy is half a nat surer."""
    batches = [scored([2, 1], [True, False], [[1.0, 2.0], [3.0, 4.0]]), scored([3], [True], [[5.0, 6.0]])]
    with tiny_run(tmp_path) as run:
        assert _rollout_figures(run, batches, 3) == pytest.approx(
            {
                "kl/sampled": 0.5,
                "rollout/response_tokens": 2.0,
                "rollout/eos_rate": 2 / 3,
                "rollout/term/repetition": 3.0,
                "rollout/term/continuation_overlap": 4.0,
            }
        )


@pytest.mark.slow
def test_the_share_of_the_dual_clip_is_written_where_there_is_one(tmp_path):
    """Rates and epochs that take ratios beyond 1.3; it is part of the clip fraction."""
    for overrides, count in [([], 0), (["ppo.dual_clip=1.3", "ppo.policy_lr=1e-2", "ppo.epochs=4"], 1)]:
        with tiny_run(tmp_path, *overrides) as run:
            one_update(run)
            logged = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
        found = [line for line in logged if "ppo/dual_clip_fraction" in line]
        assert len(found) == count
        assert all(0 < line["ppo/dual_clip_fraction"] <= line["ppo/clip_fraction"] for line in found)


@pytest.mark.slow
def test_an_update_writes_as_many_samples_as_the_config_asks_for_and_their_rewards_are_its_own(tmp_path):
    """16 rollouts in four micro-batches of four: 6 are one and a half micro-batches; 16 are all."""
    with tiny_run(tmp_path, "run.samples_per_update=6") as run:
        one_update(run)
        assert len((run.folder / "samples.jsonl").read_text().splitlines()) == 6
    with tiny_run(tmp_path, "run.samples_per_update=16") as run:
        one_update(run)
        samples = [json.loads(line) for line in (run.folder / "samples.jsonl").read_text().splitlines()]
        logged = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    (line,) = [line for line in logged if "ppo/steps" in line]
    assert len(samples) == 16
    assert line["rollout/reward"] == pytest.approx(sum(sample["reward"] for sample in samples) / 16)
    for name in ("arithmetic", "noise"):
        rewards = [sample["reward"] for sample in samples if sample["source"] == name]
        assert line[f"rollout/reward/{name}"] == pytest.approx(sum(rewards) / len(rewards))


@pytest.mark.slow
def test_tokens_per_second_are_the_tokens_of_the_update_over_the_seconds_of_its_phases(tmp_path):
    with tiny_run(tmp_path) as run:
        one_update(run)
        (line,) = [json.loads(text) for text in (run.folder / "metrics.jsonl").read_text().splitlines()[-1:]]
    phases = [name for name in line if name.startswith("time/") and name != "time/tokens_per_s"]
    assert {"time/data", "time/generate", "time/score", "time/update", "time/kl", "time/round"} == set(phases)
    assert line["time/tokens_per_s"] * sum(line[name] for name in phases) == pytest.approx(run.state.tokens)


def test_the_rewards_of_the_summary_are_those_of_the_first_and_the_last_tenth_of_the_updates(tmp_path):
    """Of 25 updates the first two and the last two; update u brings rewards of u and 3u."""
    with tiny_run(tmp_path) as run:
        state = run.state
        state.update, state.breaches, state.kl_max, state.skipped, state.tokens = 25, 3, 0.2, 5, 7000
        state.rewards = [[[4.0 * u, 4], [12.0 * u, 4]] for u in range(25)]
        state.validation = dict.fromkeys(("before", "after_warmup", "after"), {})
        summary = summarize(run)
    assert (summary.reward_before, summary.reward_after) == (2 * 0.5, 2 * 23.5)
    names = ("updates", "kl_breaches", "kl_max", "skipped_steps", "tokens", "kl_bound", "seed", "world_size")
    assert [getattr(summary, name) for name in names] == [25, 3, 0.2, 5, 7000, 1.0, 3, 1]


PER_SOURCE = [field.name for field in dataclasses.fields(Estimates) if field.type == Floats]


def test_a_round_logs_each_figure_of_each_source_under_its_own_name(tmp_path):
    """Field i of source k is i + k/2, and null where it is not finite; the target moves before the weights."""
    figures = {name: np.array([i, i + 0.5]) for i, name in enumerate(PER_SOURCE)}
    figures |= {"progress": np.array([0.1, 0.0]), "progress_se": np.zeros(2), "exhausted": np.zeros(2)}
    figures |= {"variance": np.array([math.nan, 1.0]), "advantage_se": np.array([2.0, math.inf])}
    figures["epochs"] = np.array([0.5, 0.25])
    with tiny_run(tmp_path) as run:
        estimates = estimates_for(2, round_index=1, batches=7, **figures)
        run.curriculum.strategy.observe(estimates)
        record_round(run, estimates)
        (line,) = [json.loads(text) for text in (run.folder / "metrics.jsonl").read_text().splitlines()]
    for name, (arithmetic, noise) in figures.items():
        want = [x if math.isfinite(x) else None for x in (arithmetic, noise)]
        assert [line.pop(f"curriculum/{name}/{source}") for source in ("arithmetic", "noise")] == want, name
    for name, want in (("weight", [0.5, 0.5]), ("target", pytest.approx([0.9, 0.1]))):
        assert [line.pop(f"curriculum/{name}/{source}") for source in ("arithmetic", "noise")] == want
    assert line == {
        "phase": "ppo",
        "step": 0,
        "curriculum/round": 1,
        "curriculum/batches": 7,
        "curriculum/held": 0,
        "curriculum/stability_margin": None,
        "curriculum/panel_size": 8,
        "curriculum/probe_share": 0,
    }


@pytest.mark.slow
def test_every_field_of_the_estimates_of_a_run_can_be_read_back(tmp_path):
    """Of its third round, when the progress is known, after 32 rollouts in two updates."""
    with tiny_run(tmp_path) as run:
        for _ in range(3):
            one_update(run)
        logged = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
        size, drawn = run.curriculum.panel_size, run.curriculum.trained_tokens
    rounds = [line for line in logged if "curriculum/round" in line]
    assert [line["curriculum/round"] for line in rounds] == [0, 1, 2]
    assert [line["curriculum/batches"] for line in rounds] == [0, 1, 1]
    names = [f"curriculum/{name}/{source}" for name in PER_SOURCE for source in ("arithmetic", "noise")]
    assert [name for name in names if rounds[2].get(name, None) is None] == []
    unknown = {name.split("/")[1] for name in names if rounds[0][name] is None}
    assert unknown == {"progress_se", "advantage", "advantage_se", "reward_variance", "reward_variance_se"}
    shares = [rounds[2][f"curriculum/share/{source}"] for source in ("arithmetic", "noise")]
    tokens = [sum(line[f"curriculum/tokens/{source}"] for line in rounds) for source in ("arithmetic", "noise")]
    assert shares == pytest.approx([count / sum(tokens) for count in tokens])
    # Two sources, windows of 16 tokens; none was gone through, so no training window was scored.
    assert rounds[2]["curriculum/probe_share"] == pytest.approx(3 * 2 * size * 16 / drawn)


@pytest.mark.slow
def test_the_reasons_for_the_weights_stand_in_tensorboard(tmp_path):
    with tiny_run(tmp_path) as run:
        for _ in range(3):
            one_update(run)
        reasons, weights = run.curriculum.strategy.reasons(), run.curriculum.weights
    board = EventAccumulator(str(run.folder / "logs")).Reload()
    events = board.Tensors("curriculum/reasons/text_summary")
    texts = [event.tensor_proto.string_val[0].decode() for event in events]
    assert [event.step for event in events] == [0, 1, 2]
    heads = ["| source | weight | reason |", "|---|--:|---|"]
    assert texts[0].splitlines() == [*heads, "| arithmetic | 0.500 | prior |", "| noise | 0.500 | prior |"]
    rows = [f"| {name} | {w:.3f} | {why} |" for name, w, why in zip(run.names, weights, reasons, strict=True)]
    assert texts[2].splitlines() == [*heads, *rows] and "prior" not in reasons


@pytest.mark.slow
def test_a_budget_that_shrinks_the_panels_is_said_once(tmp_path, monkeypatch):
    """An update trains on at most 16 windows of 16 tokens, twice: 512 tokens, of which 1/4 pays for 4 windows of both
    sources; a dozen are the fewest."""
    said = []
    with tiny_run(tmp_path, "curriculum.difficulty_sample_size=13") as run:
        monkeypatch.setattr(run.screen, "say", said.append)
        for _ in range(4):
            one_update(run)
    assert [line for line in said if "panels" in line] == [
        "panels of 12 windows instead of 13: more would be over curriculum.probe_budget=0.25 of the training tokens"
    ]


def test_the_feedback_of_each_source_is_a_loop_over_its_rollouts(tmp_path):
    with tiny_run(tmp_path) as run:
        scored = pack_and_score(run, roll_out(run, draw(run, run.curriculum.weights)))
        trains = micro_batches(with_advantages(scored, run.config.gamma, 0.9, run.topology))
        got = feedback_per_source(trains, 2, run.topology).numpy()
    want = np.zeros((2, 7))
    for train in trains:
        rollouts = train.scored.rollouts
        for row, length in enumerate(rollouts.lengths.tolist()):
            score = train.scored.rewarded.score[row].item()
            size = np.abs(train.advantages[row, :length].double().numpy()).mean()
            want[rollouts.prompts.source[row]] += [score, 1, score**2, score**3, score**4, size, size**2]
    assert want[:, 1].tolist() == [8, 8]
    np.testing.assert_allclose(got, want, rtol=1e-9)
