"""The warm-up across lives whose plans differ: what was drawn stays drawn, and what is told is of the model."""

import pytest

from destruct.loop import train
from destruct.signals import Stopped
from tests.tiny import tiny_run

pytestmark = pytest.mark.slow


def stopped_after(folder, steps: int, *overrides: str):
    """A run that is stopped when so many steps of its warm-up are made."""
    with tiny_run(folder, *overrides, "run.checkpoint_every=0") as run:
        pause = run.pause

        def stopping() -> None:
            run.signals.received = int(run.state.lm_steps + run.state.value_steps == steps) * 15
            pause()

        run.pause = stopping
        with pytest.raises(Stopped):
            train(run)
    return run


def test_more_steps_of_language_after_those_of_the_values_go_on_where_each_was(tmp_path):
    before = stopped_after(tmp_path, 4, "warmup.lm_updates=2", "warmup.value_updates=3").state
    assert (before.lm_steps, before.value_steps) == (2, 2)
    how = ["warmup.lm_updates=3", "warmup.value_updates=3", "run.resume=auto"]
    after = stopped_after(tmp_path, 6, *how).state
    assert (after.lm_steps, after.value_steps) == (3, 3)
    for mixture, steps in ((after.language_mixture, 3), (after.value_mixture, 3)):
        assert (mixture["draws"], sum(mixture["cursors"].values())) == (steps, 16 * steps)


def test_a_model_that_was_taught_is_validated_though_the_plan_says_no_more_of_it(tmp_path):
    stopped_after(tmp_path, 4)
    with tiny_run(tmp_path, "warmup.lm_updates=0", "run.updates_per_epoch=1", "run.resume=auto") as run:
        losses = train(run).validation
        assert run.state.lm_steps == 4 and losses["after_warmup"] != losses["before"]
