"""What the loop itself decides: the KL constraint, and on tiny runs which numbers reach which part, and when."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import torch

from destruct import loop
from destruct.batch import PromptBatch
from destruct.checkpoint.state import TrainState
from destruct.config.ppo import KLConfig
from destruct.curriculum.strategies import FixedWeights
from destruct.loop import constrain, one_update
from destruct.minibatch import micro_batches
from destruct.models.policy import build_copy
from destruct.preparation import warm_up
from destruct.rollout.score import with_advantages
from destruct.run import Run
from destruct.steps import draw, pack_and_score, roll_out
from tests.tiny import tiny_run

SCORE_1 = ["reward.terms={'tests.tiny:one': 1.0}", "kl.coef=0.0"]  # the reward of a rollout is 1, at its last token
ONE_STEP = ["ppo.epochs=1", "ppo.minibatches=1"]


@pytest.mark.parametrize("mode", ["generate", "per_position"])
def test_an_update_on_prompts_and_continuations_of_any_length_begins_at_a_ratio_of_one(tmp_path, monkeypatch, mode):
    """Prompts of 1 to 8 tokens, continuations of 0 to 8; the KL to the model that was just copied is 0 as well."""

    def shorter(run: Run, weights: np.ndarray) -> PromptBatch:
        whole = draw(run, weights)
        lengths = {"prompt_lengths": 1 + whole.sample % 8, "continuation_lengths": whole.sample * 5 % 9}
        return dataclasses.replace(whole, **lengths)

    monkeypatch.setattr(loop, "draw", shorter)
    terms = "{match: 1.0}" if mode == "per_position" else "{continuation_overlap: 1.0, repetition: 1.0}"
    with tiny_run(tmp_path, f"rollout.mode={mode}", f"reward.terms={terms}") as run:
        warm_up(run)
        for _ in range(2):
            one_update(run)
    logged = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    updates = [line for line in logged if "ppo/steps" in line]
    assert [line["ppo/first_ratio_error"] for line in updates] == [0, 0]
    assert [line["kl/sampled"] for line in updates] == [0, 0]
    assert all(line["ppo/skipped"] == 0 and line["ppo/policy_grad_norm"] > 0 for line in updates)
    samples = [json.loads(line) for line in (run.folder / "samples.jsonl").read_text().splitlines()]
    assert len({len(sample["prompt"]) for sample in samples}) > 1


def test_a_breach_counts_raises_beta_once_and_is_said():
    """Bound 0.2: 0.1 and 0.2 hold, 0.3 breaches; beta 0.1 becomes 0.15 for the next update."""
    state, said = TrainState(kl_coef=0.1), []
    constraint = KLConfig(bound=0.2, breach_factor=1.5)
    betas = []
    for kl in (0.1, 0.2, 0.3, 0.05):
        constrain(state, kl, constraint, 64, said.append)
        betas.append(state.kl_coef)
    assert betas == pytest.approx([0.1, 0.1, 0.15, 0.15])
    assert (state.breaches, state.kl_max) == (1, 0.3)
    assert len(said) == 1 and "0.3000" in said[0]


@pytest.mark.parametrize("kl", [math.nan, math.inf])
def test_a_kl_that_is_not_a_number_is_a_breach(kl):
    state = TrainState(kl_coef=0.1)
    for value in (kl, 0.1):
        constrain(state, value, KLConfig(bound=0.2, breach_factor=2.0), 64, lambda line: None)
    assert state.breaches == 1
    assert state.kl_max == math.inf, "and stays the largest"


def test_a_target_leads_beta_and_a_breach_comes_on_top():
    """64 rollouts of 640, so a tenth of the error: KL halfway to 0 takes 2% (held at a fifth), 5% above the target adds
    0.5%, and a breach adds 2% and then a half."""
    state, said = TrainState(kl_coef=0.1), []
    constraint = KLConfig(target=0.1, horizon=640, bound=0.2, breach_factor=1.5)
    betas = []
    for kl in (0.05, 0.105, 0.3, math.nan):
        constrain(state, kl, constraint, 64, said.append)
        betas.append(state.kl_coef)
    assert betas == pytest.approx([0.098, 0.09849, 0.1506897, 0.230555241], rel=1e-12)
    assert state.breaches == len(said) == 2 and "beta is now 0.1507" in said[0]


def lines(run: Run, figure: str) -> list[dict]:
    """The lines of metrics.jsonl that hold a figure."""
    logged = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in logged if figure in line]


class Turning(FixedWeights):
    """All weight on one source, and after each round on the other."""

    def observe(self, estimates):
        self._weights = self._weights[::-1].copy()


def test_the_weights_of_a_round_act_on_the_windows_of_its_own_update(tmp_path):
    with tiny_run(tmp_path) as run:
        run.curriculum.strategy = Turning(np.array([1.0, 0.0]))
        one_update(run)
        assert run.mixture.state_dict()["cursors"] == {"arithmetic": 0, "noise": 16}
        one_update(run)
        assert run.mixture.state_dict()["cursors"] == {"arithmetic": 16, "noise": 16}


@pytest.mark.slow
def test_the_curriculum_counts_the_tokens_that_were_drawn_once_for_each_epoch_of_ppo(tmp_path, monkeypatch):
    """Prompts and continuations of any length, of two draws since a round; padding is not counted."""
    drawn = []
    monkeypatch.setattr(loop, "draw", lambda run, weights: drawn.append(draw(run, weights)) or drawn[-1])
    with tiny_run(tmp_path, "frozen.refresh_every=2", "ppo.epochs=3") as run:
        for _ in range(2):
            one_update(run)
        since = run.curriculum.state_dict()["since_the_round"]
        epochs = [line["ppo/epochs"] for line in lines(run, "ppo/steps")]
        tokens, passed = [0, 0], 0.0
        for prompts, times in zip(drawn, epochs, strict=True):
            for row, kind in zip((prompts.windows != run.tokenizer.pad_id).tolist(), prompts.source, strict=True):
                tokens[kind] += sum(row)
                passed += sum(row) * times
        assert since["tokens"] == tokens and min(tokens) > 0
        assert (since["trained"], since["batches"]) == (pytest.approx(passed, rel=1e-12), 2)
        rollouts = [counts for _, counts in np.sum(run.state.rewards, axis=0).tolist()]
        assert [row[1] for row in since["feedback"]] == rollouts == [16, 16]
        one_update(run)
        assert run.curriculum.trained_tokens == pytest.approx(passed, rel=1e-12), "the round has taken it in"
        (line,) = [line for line in lines(run, "curriculum/round") if line["curriculum/round"] == 1]
        assert [line[f"curriculum/tokens/{name}"] for name in run.names] == tokens


@pytest.mark.parametrize("strategy", ["second_order", "literal"])
@pytest.mark.parametrize("signal", ["advantage", "reward_variance"])
@pytest.mark.slow
def test_weights_can_follow_what_ppo_says_of_each_source(tmp_path, strategy, signal):
    """From the third round on, in which the rollouts of the second update count."""
    weights = []
    with tiny_run(tmp_path, f"curriculum.strategy={strategy}", f"curriculum.signal={signal}") as run:
        warm_up(run)
        for _ in range(4):
            one_update(run)
            weights.append(run.curriculum.weights.tolist())
        found = [[line[f"curriculum/{signal}/{name}"] for name in run.names] for line in lines(run, "curriculum/round")]
    assert weights[:2] == [[0.5, 0.5]] * 2 and found[0] == [None, None]
    assert weights[2] != weights[1]
    assert sum(weights[3]) == pytest.approx(1) and min(weights[3]) >= 0
    if strategy == "literal":
        for before, now, (one, other) in zip(weights[1:], weights[2:], found[2:], strict=False):
            step = 0.5 * (one - other) / 2  # 0 where both sources have as much of it
            assert now == pytest.approx([before[0] + step, before[1] - step], abs=1e-12)
    else:
        assert weights[3] != weights[2]
        assert np.sign(weights[2][0] - 0.5) == np.sign(found[2][0] - found[2][1]), "where more of it is"


@pytest.mark.slow
def test_a_round_comes_before_the_first_update_and_before_every_second_one_after_it(tmp_path):
    rounds = []
    with tiny_run(tmp_path, "frozen.refresh_every=2") as run:
        for _ in range(5):
            one_update(run)
            rounds.append(run.curriculum.rounds)
    assert rounds == [1, 1, 2, 2, 3]


def test_warm_up_steps_by_its_own_rates_and_ends_with_the_frozen_model_renewed(tmp_path):
    """Adam's first step moves the weight with the largest gradient by the learning rate, less the share of eps."""
    rates = ["warmup.lm_lr=3e-3", "ppo.value_lr=2e-3", "ppo.policy_lr=1e-6"]
    with tiny_run(tmp_path, *rates, "warmup.lm_updates=1", "warmup.value_updates=1", *ONE_STEP) as run:
        masters = [*run.policy.masters, *run.value.masters]
        before = [master.detach().clone() for master in masters]
        warm_up(run)
        moved = [(new - old).abs().max().item() for new, old in zip(masters, before, strict=True)]
        split = len(run.policy.masters)
        assert [max(moved[:split]), max(moved[split:])] == pytest.approx([3e-3, 2e-3], rel=0.02)
        frozen = dict(run.frozen.tensors_in_full())
        assert all(torch.equal(frozen[name], p) for name, p in run.policy.tensors_in_full())


def test_the_value_network_is_warmed_up_on_monte_carlo_returns_and_trained_on_those_of_the_configs_lam(tmp_path):
    """Values stay near 0.  With lam = 1 the return of every token is 1, with lam = 0 that of the last alone.

    Half the mean square is then 1/2, and 1/2 of what one token is of a response.
    """
    with tiny_run(tmp_path, *SCORE_1, *ONE_STEP, "ppo.lam=0.0", "ppo.value_lr=1e-9") as run:
        warm_up(run)
        one_update(run)
        (first,), (second,) = lines(run, "warmup/value_loss"), lines(run, "ppo/value_loss")
        assert first["warmup/value_loss"] == pytest.approx(0.5, rel=1e-5)
        assert second["ppo/value_loss"] == pytest.approx(0.5 / second["rollout/response_tokens"], rel=1e-5)


def test_returns_are_discounted_by_the_configs_gamma(tmp_path):
    """Half as much for each token before the last."""
    with tiny_run(tmp_path, *SCORE_1, "ppo.gamma=0.5") as run:
        run.frozen.refresh(run.policy)
        scored = pack_and_score(run, roll_out(run, draw(run, run.curriculum.weights)))
        for train_batch in micro_batches(with_advantages(scored, run.config.gamma, 1.0, run.topology)):
            lengths = train_batch.scored.rollouts.lengths.tolist()
            for returns, n in zip(train_batch.returns.tolist(), lengths, strict=True):
                assert returns == pytest.approx([0.5 ** (n - 1 - t) if t < n else 0.0 for t in range(8)])


def test_rollouts_come_from_the_policys_weights_of_now_and_their_tokens_are_counted(tmp_path):
    """With a replica of its own, as the sharded engines have one; drawn tokens without padding, and sampled ones."""
    with tiny_run(tmp_path) as run:
        shape, size = run.config.model.policy, run.tokenizer.vocab_size
        run.replica = build_copy(shape, size, torch.bfloat16, "chunked")
        replica = dict(run.replica.named_parameters())
        assert not all(torch.equal(replica[name], p) for name, p in run.policy.tensors_in_full())
        prompts = draw(run, run.curriculum.weights)
        scored = pack_and_score(run, roll_out(run, prompts))
        assert all(torch.equal(replica[name], p) for name, p in run.policy.tensors_in_full())
        sampled = sum(int(micro.rollouts.mask.sum()) for micro in micro_batches(scored))
        assert run.state.tokens == int((prompts.windows != run.tokenizer.pad_id).sum()) + sampled


def test_the_first_ratio_is_one_at_another_temperature_too(tmp_path):
    """Scoring and training divide by the same temperature, and lay the same rows out."""
    with tiny_run(tmp_path, "rollout.temperature=0.7") as run:
        for _ in range(2):
            one_update(run)
        assert [line["ppo/first_ratio_error"] for line in lines(run, "ppo/steps")] == [0.0, 0.0]


def test_each_draw_is_packed_and_each_update_shuffled_by_an_order_of_its_own(tmp_path):
    """Which rollouts share the first of two minibatches, and in which order four minibatches are trained on."""
    with tiny_run(tmp_path, "ppo.epochs=1", "ppo.minibatches=4") as run:
        packed, orders = [], []
        scored, trained = [], []

        def note(module, inputs, output):
            (trained if torch.is_grad_enabled() else scored).append(inputs[0][0].tolist())

        for _ in range(3):
            first, *_ = pack_and_score(run, roll_out(run, draw(run, run.curriculum.weights)))
            packed.append({s % 16 for micro in first.micro_batches for s in micro.rollouts.prompts.sample.tolist()})
        run.policy.module.register_forward_hook(note)
        for _ in range(4):
            scored.clear(), trained.clear()
            one_update(run)
            orders.append([scored[:8:2].index(tokens) for tokens in trained[::2]])
    assert packed[0] != packed[1] != packed[2]
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    assert len({tuple(order) for order in orders}) > 2


def test_the_steps_of_the_run_go_on_from_update_to_update(tmp_path):
    """Two epochs of two minibatches are four steps; the line of an update tells the rate of its first."""
    with tiny_run(tmp_path) as run:
        asked = []
        schedule = lambda step: asked.append(step) or step * 1e-6  # noqa: E731
        run.update_settings = dataclasses.replace(run.update_settings, policy_lr=schedule)
        for _ in range(2):
            one_update(run)
        assert run.state.optimizer_steps == 8
        assert sorted(set(asked)) == list(range(8))
        assert [line["ppo/policy_lr"] for line in lines(run, "ppo/steps")] == [0.0, 4e-6]


def test_steps_that_neither_network_took_are_counted_and_take_no_place_in_the_schedule(tmp_path):
    """A value network that says nan: both epochs of both minibatches are dropped."""
    with tiny_run(tmp_path) as run:
        run.value.module.head.register_forward_hook(lambda *answered: answered[-1] * math.nan)
        before = [master.detach().clone() for master in run.policy.masters]
        one_update(run)
        assert (run.state.skipped, run.state.optimizer_steps, run.state.skipped_in_a_row) == (4, 0, 1)
        (line,) = lines(run, "ppo/steps")
        assert (line["ppo/skipped"], line["rollout/reward"]) == (4, None), "advantages are not finite either"
        assert all(torch.equal(a, b) for a, b in zip(before, run.policy.masters, strict=True))


def test_the_constraint_is_measured_after_the_update_whose_line_tells_the_beta_it_used(tmp_path):
    """One step away from the reference itself: inside the update the KL is 0, after it is not."""
    with tiny_run(tmp_path, *ONE_STEP, "ppo.ptx_coef=0.0", "kl.bound=1e-9") as run:
        one_update(run)
        (line,) = lines(run, "ppo/steps")
        assert line["ppo/reference_kl"] == pytest.approx(0, abs=1e-12)
        assert run.state.kl_max == line["kl/to_reference"] > 1e-6
        assert (line["kl/breaches"], line["kl/coef"]) == (1, 0.05)
        assert run.state.kl_coef == pytest.approx(0.075)


def test_beta_follows_the_logged_kl_towards_its_target(tmp_path):
    """16 rollouts of 80: an error counts a fifth.  The target lies among the KLs of this run, so both signs occur."""
    with tiny_run(tmp_path, "kl.target=0.008", "kl.horizon=80", "frozen.refresh_every=3") as run:
        for _ in range(6):
            one_update(run)
        logged = [(line["kl/coef"], line["kl/to_reference"]) for line in lines(run, "ppo/steps")]
        betas = [*(beta for beta, _ in logged), run.state.kl_coef]
    factors = [float(1 + np.clip((kl - 0.008) / 0.008, -0.2, 0.2) / 5) for _, kl in logged]
    assert betas[0] == 0.05 and min(factors) < 1 < max(factors)
    assert [after / before for before, after in itertools.pairwise(betas)] == pytest.approx(factors, rel=1e-12)
