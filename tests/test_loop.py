"""What the loop itself decides: the KL constraint, and on tiny runs which numbers reach which part, and when."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import torch

from destruct.batch import micro_batches
from destruct.checkpoint.state import TrainState
from destruct.config.ppo import KLConfig
from destruct.curriculum.strategies import FixedWeights
from destruct.evaluation import validate
from destruct.loop import constrain, draw, is_lowest, one_update, pack_and_score, roll_out, train, warm_up
from destruct.models.policy import build_copy
from destruct.recording import summarize
from destruct.rollout.score import with_advantages
from destruct.run import Run
from tests.tiny import tiny_run

SCORE_1 = ["reward.terms={'tests.tiny:one': 1.0}", "kl.coef=0.0"]  # the reward of a rollout is 1, at its last token
ONE_STEP = ["ppo.epochs=1", "ppo.minibatches=1"]


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


def test_a_loss_is_the_lowest_when_it_is_below_all_before_it_and_nan_never_is():
    state = TrainState(kl_coef=0.1)
    losses = [math.nan, 3.0, math.nan, 2.5, 2.5, 2.7, math.inf, 2.4]
    assert [is_lowest(state, loss) for loss in losses] == [False, True, False, True, False, False, False, True]
    assert state.lowest_loss == 2.4


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
    """With a replica of its own, as the sharded engines have one; 16 windows of 16 tokens, and what was sampled."""
    with tiny_run(tmp_path) as run:
        shape, size = run.config.model.policy, run.tokenizer.vocab_size
        run.replica = build_copy(shape, size, torch.bfloat16, "chunked")
        replica = dict(run.replica.named_parameters())
        assert not all(torch.equal(replica[name], p) for name, p in run.policy.tensors_in_full())
        scored = pack_and_score(run, roll_out(run, draw(run, run.curriculum.weights)))
        assert all(torch.equal(replica[name], p) for name, p in run.policy.tensors_in_full())
        sampled = sum(int(micro.rollouts.mask.sum()) for micro in micro_batches(scored))
        assert run.state.tokens == 16 * 16 + sampled


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
        with torch.no_grad():
            run.value.module.head.bias.fill_(math.nan)
        before = [master.detach().clone() for master in run.policy.masters]
        one_update(run)
        assert (run.state.skipped, run.state.optimizer_steps) == (4, 0)
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


def test_the_three_validations_are_of_the_policy_at_their_time(tmp_path):
    with tiny_run(tmp_path, "run.num_epochs=1", "run.updates_per_epoch=1") as run:
        losses = train(run).validation
        assert losses["after"] == validate(run.policy, run.inputs.validation, run.topology).as_summary()
        assert len({each["arithmetic"] for each in losses.values()}) == 3
        logged = [(line["phase"], line["step"]) for line in lines(run, "validation/mean")]
        assert logged == [("before", 0), ("after_warmup", 4), ("ppo", 0)], "four steps of warm-up, one update"


@pytest.mark.slow
def test_the_intervals_add_to_the_ends_of_epochs(tmp_path):
    """Two epochs of three updates; a negative rate makes each update worse than the one before, the first the best."""
    intervals = ["run.evaluate_every=2", "run.checkpoint_every=4", "run.keep_checkpoints=9"]
    with tiny_run(tmp_path, *intervals) as run:
        assert (run.updates, run.updates_per_epoch) == (6, 3)
        with_rates(run, *[-1e-3] * 6)
        train(run)
        validated = [line["step"] + 1 for line in lines(run, "validation/mean") if line["phase"] == "ppo"]
        assert validated == [2, 3, 4, 6], "every second update, and each third"
        assert kept(run) == [2, 3, 4, 6], "the best, the ends of epochs, and every fourth"


def with_rates(run: Run, *rates: float) -> None:
    """A learning rate of the policy for each update, of four steps; below 0 the losses rise."""
    run.update_settings = dataclasses.replace(run.update_settings, policy_lr=lambda step: rates[step // 4])


def kept(run: Run) -> list[int]:
    """Updates of the checkpoints that lie in the run's folder."""
    return sorted(int(path.name.removeprefix("step-")) for path in run.store.folder.glob("step-*"))


def best(run: Run) -> tuple[int, int | None, float]:
    """What the pointer names, and the update and loss that the summary tells."""
    summary = summarize(run)
    pointer = (run.store.folder / "best").read_text().strip()
    assert summary.files["best checkpoint"] == str(run.store.folder / pointer)
    return int(pointer.removeprefix("step-")), summary.best_update, summary.best_validation_loss


DOWN_UP_DOWN = (3e-3, 3e-3, -1e-3, 3e-3, -3e-3, -1e-3)
"""Rates by which losses fall twice, rise to between the first and the second, fall to the lowest, and rise twice."""


@pytest.mark.slow
def test_the_best_checkpoint_is_that_of_the_lowest_validation_loss_in_metrics_jsonl(tmp_path):
    """Saved at 1, 2 and 4 for being the best, at 3 and 6 as epochs end; of them 6 is the newest."""
    with tiny_run(tmp_path, "run.evaluate_every=1", "run.checkpoint_every=0", "run.keep_checkpoints=1") as run:
        with_rates(run, *DOWN_UP_DOWN)
        train(run)
        losses = [line["validation/mean"] for line in lines(run, "validation/mean") if line["phase"] == "ppo"]
        assert losses[3] < losses[1] < losses[2] < losses[0] and losses[3] < losses[4] < losses[5]
        assert kept(run) == [4, 6]
        assert best(run) == (4, 4, losses[3])
        assert run.state.validation["after"]["mean"] == losses[5], "the newest, not the best"
        written = TrainState.load(run.store.path(4) / "state.json")
        assert (written.best_update, written.best_loss) == (4, losses[3]), "it says of itself that it is the best"
        assert written.validation["after"]["mean"] == losses[3], "validated before it is written"


@pytest.mark.slow
def test_a_failed_save_of_the_best_moves_no_pointer_and_a_later_worse_one_is_not_the_best(tmp_path):
    """The second update's stage is obstructed.  The third is worse than it, though better than the first."""
    with tiny_run(tmp_path, "run.evaluate_every=1", "run.checkpoint_every=0", "run.updates_per_epoch=6") as run:
        with_rates(run, *DOWN_UP_DOWN)
        warm_up(run)
        found = []
        for update in range(4):
            (run.store.folder / ".stage-00000002").unlink(missing_ok=True)
            if update == 1:
                (run.store.folder / ".stage-00000002").touch()
            one_update(run)
            found.append((run.saved, best(run)[:2], kept(run)))
        losses = [line["validation/mean"] for line in lines(run, "validation/mean") if line["phase"] == "ppo"]
        assert losses[3] < losses[1] < losses[2] < losses[0]
        assert found == [(True, (1, 1), [1]), (False, (1, 1), [1]), (False, (1, 1), [1]), (True, (4, 4), [1, 4])]


def test_a_plan_that_ends_before_any_validation_gets_one_at_its_end(tmp_path):
    """Resumed after one update, whose epoch was to have three, by a plan of one."""
    with tiny_run(tmp_path, "run.checkpoint_every=1") as run:
        warm_up(run)
        one_update(run)
        assert "after" not in run.state.validation
    with tiny_run(tmp_path, "run.resume=auto", "run.num_epochs=1", "run.updates_per_epoch=1") as run:
        losses = train(run).validation
        assert losses["after"] == validate(run.policy, run.validation_sets, run.topology).as_summary()
