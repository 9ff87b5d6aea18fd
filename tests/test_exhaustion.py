"""Runs whose sources end: the weight that falls to the others, and a run that ends before its plan does."""

import signal

import pytest

from destruct.errors import DestructError
from destruct.loop import train
from destruct.signals import Stopped
from destruct.summarizing import summarize
from tests.test_loop import lines
from tests.tiny import tiny_run

pytestmark = pytest.mark.slow

SMALL = "data.sources.noise={embedded: noise, learnable: false, max_documents: 2, on_exhausted: %s}"
"""One document to train on: some dozens of pieces."""
ALIKE = ["curriculum.strategy=uniform", "warmup.lm_updates=2"]


def drawn(run) -> list[int]:
    """Pieces of `noise` in each update, as the rewards count them."""
    return [int(update[1][1]) for update in run.state.rewards]


def test_a_source_that_is_dropped_leaves_its_part_of_the_batch_to_the_others(tmp_path, capsys):
    with tiny_run(tmp_path, SMALL % "drop", *ALIKE, "run.updates_per_epoch=18", "run.num_epochs=1") as run:
        pieces = len(run.inputs.train[1])
        train(run)
        assert run.state.update == 18 and run.mixture.exhausted == ["noise"]
        assert run.mixture.drawn[1] == pieces and sum(run.mixture.drawn) == 16 * 18, (
            "what warmed the values up does not count"
        )
        assert drawn(run)[-1] == 0 < drawn(run)[0]
        assert [line["curriculum/epochs/noise"] for line in lines(run, "curriculum/epochs/noise")][-1] == 1


def test_a_source_that_ends_the_run_ends_it_with_a_validation_and_a_checkpoint(tmp_path):
    plan = [SMALL % "stop", *ALIKE, "run.updates_per_epoch=50", "run.checkpoint_every=0"]
    with tiny_run(tmp_path, *plan) as run:
        train(run)
        done = run.state.update
        assert 0 < done < 50 and run.store.path(done).is_dir()
        validated = [line["step"] + 1 for line in lines(run, "validation/mean") if line["phase"] == "ppo"]
        assert validated == [done] and summarize(run).updates == done
        written = (run.store.path(done) / "manifest.json").stat()
    with tiny_run(tmp_path, *plan, "run.resume=auto") as again:
        train(again)
        assert again.state.update == done and again.curriculum.rounds == run.curriculum.rounds
        assert (again.store.path(done) / "manifest.json").stat() == written, (
            "nothing is left to do, and nothing was done"
        )


def test_stopped_right_before_the_data_end_a_run_is_still_validated_and_its_best_named(tmp_path):
    plan = [SMALL % "stop", *ALIKE, "run.updates_per_epoch=50", "run.checkpoint_every=0", "run.evaluate_every=5"]
    (tmp_path / "whole").mkdir()
    with tiny_run(tmp_path / "whole", *plan) as whole:
        told = summarize_of(whole)
    done, boundaries = whole.state.update, iter(range(1000))
    assert done % 5 != 0, "its last update has no validation of its own"
    with tiny_run(tmp_path, *plan) as run:
        pause = run.pause

        def stopping() -> None:
            if run.state.update == done and next(boundaries) == 0:
                run.signals.received = signal.SIGTERM
            pause()

        run.pause = stopping
        with pytest.raises(Stopped):
            train(run)
    with tiny_run(tmp_path, *plan, "run.resume=auto") as again:
        assert again.state.update == done
        assert summarize_of(again) == told
        assert not (again.store.folder / "given-up").exists(), "nothing is saved twice"


def summarize_of(run) -> tuple:
    """Train; the last validation, the best one and where it lies."""
    train(run)
    summary = summarize(run)
    pointer = (run.store.folder / "best").read_text()
    return summary.validation_loss_after, summary.best_update, summary.best_validation_loss, pointer


def test_sources_that_end_before_the_first_update_are_a_mistake_of_the_config(tmp_path):
    few = "data.sources={noise: {embedded: noise, max_documents: 2, on_exhausted: drop}}"
    with tiny_run(tmp_path, few, "rollout.batch_size=512", "data.validation_fraction=0.5") as run:
        with pytest.raises(DestructError, match="noise are exhausted before the first update") as error:
            train(run)
        assert "rollout.batch_size" in error.value.remedy


def test_a_run_that_ended_goes_on_when_its_source_may_be_gone_through_once_more(tmp_path):
    plan = ["run.updates_per_epoch=50", *ALIKE]
    with tiny_run(tmp_path, SMALL % "stop", *plan) as run:
        done = train(run).update
    twice = SMALL % "stop, max_epochs: 2"
    with tiny_run(tmp_path, twice, *plan, "run.resume=auto") as again:
        assert again.state.update == done < train(again).update
        assert again.mixture.epochs[1] == 2
