"""Ends of epochs: when a run validates and saves, and which checkpoint is the best."""

import dataclasses
import math

import pytest
import torch

from destruct.checkpoint.state import TrainState
from destruct.evaluation import validate
from destruct.loop import evaluate_update, one_update, train
from destruct.preparation import warm_up
from destruct.run import Run
from destruct.summarizing import summarize
from tests.test_loop import lines
from tests.tiny import tiny_run


def test_a_validation_is_the_best_when_it_is_below_that_of_every_checkpoint_and_nan_never_is(tmp_path):
    with tiny_run(tmp_path) as run:
        assert evaluate_update(run), "the first"
        loss = run.state.validation["after"]["mean"]
        run.state.best_loss = loss
        assert not evaluate_update(run), "as good is not better"
        run.state.best_loss = math.nextafter(loss, math.inf)
        assert evaluate_update(run)
        with torch.no_grad():
            run.policy.module.head.weight.fill_(math.nan)
        assert not evaluate_update(run)


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
def test_a_failed_save_of_the_best_moves_no_pointer_and_the_best_of_those_that_lie_there_is_the_best(tmp_path):
    """The second update's stage is obstructed.  The third is worse than it was, and better than the first."""
    with tiny_run(tmp_path, "run.evaluate_every=1", "run.checkpoint_every=0", "run.updates_per_epoch=6") as run:
        with_rates(run, *DOWN_UP_DOWN)
        warm_up(run)
        found = []
        for update in range(4):
            (run.store.folder / ".stage-00000002").unlink(missing_ok=True)
            if update == 1:
                (run.store.folder / ".stage-00000002").touch()
            one_update(run)
            run.settle()
            found.append((run.saved, best(run)[:2], kept(run)))
        losses = [line["validation/mean"] for line in lines(run, "validation/mean") if line["phase"] == "ppo"]
        assert losses[3] < losses[1] < losses[2] < losses[0]
        assert found == [(True, (1, 1), [1]), (False, (1, 1), [1]), (True, (3, 3), [1, 3]), (True, (4, 4), [3, 4])]


def test_a_plan_that_ends_before_any_validation_gets_one_at_its_end(tmp_path):
    """Resumed after one update, whose epoch was to have three, by a plan of one."""
    with tiny_run(tmp_path, "run.checkpoint_every=1") as run:
        warm_up(run)
        one_update(run)
        assert "after" not in run.state.validation
    with tiny_run(tmp_path, "run.resume=auto", "run.num_epochs=1", "run.updates_per_epoch=1") as run:
        losses = train(run).validation
        assert losses["after"] == validate(run.policy, run.inputs.validation, run.topology).as_summary()
