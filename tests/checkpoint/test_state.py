"""The state that resumes, when a run goes on with other sources than it was written with."""

import dataclasses
import math

from destruct.checkpoint.state import TrainState, reordered

REWARDS = [[[1.5, 2.0], [0.25, 3.0], [4.0, 5.0]], [[6.0, 7.0], [0.0, 0.0], [8.0, 9.0]]]


def state() -> TrainState:
    losses = {"a": 2.0, "b": 3.0, "c": 4.0, "mean": 3.0}
    validation = {"before": losses, "after_warmup": losses, "after": losses}
    return TrainState(
        kl_coef=0.1,
        update=2,
        sources=["a", "b", "c"],
        rewards=REWARDS,
        validation=validation,
        best_loss=3.0,
        best_update=1,
    )


def test_columns_follow_their_names_worked_by_hand():
    """b goes, n comes, c and a change places."""
    assert reordered(REWARDS, ["a", "b", "c"], ["c", "n", "a"]) == [
        [[4.0, 5.0], [0.0, 0.0], [1.5, 2.0]],
        [[8.0, 9.0], [0.0, 0.0], [6.0, 7.0]],
    ]
    assert reordered([], ["a"], ["a", "n"]) == []


def test_there_and_back_is_the_same_and_a_copy():
    there = reordered(REWARDS, ["a", "b", "c"], ["n", "c", "b", "a"])
    back = reordered(there, ["n", "c", "b", "a"], ["a", "b", "c"])
    assert back == REWARDS
    back[0][0][0] = -1.0
    assert REWARDS[0][0][0] == 1.5


def test_the_same_sources_change_nothing_in_another_order_only_the_columns():
    before = dataclasses.asdict(state())
    assert dataclasses.asdict(state().of_sources(["a", "b", "c"])) == before
    turned = dataclasses.asdict(state().of_sources(["c", "b", "a"]))
    changed = {name for name, value in turned.items() if value != before[name]}
    assert changed == {"sources", "rewards"} and turned["sources"] == ["c", "b", "a"]


def test_under_other_sources_the_mean_loss_is_another_and_nothing_is_the_best_of_it():
    for names in (["a", "b", "c", "n"], ["a", "b"]):
        moved = state().of_sources(names)
        assert (moved.best_loss, moved.best_update, moved.sources) == (math.inf, None, names)
        assert moved.validation == {phase: state().validation[phase] for phase in ("before", "after_warmup")}
        assert (moved.update, moved.kl_coef) == (2, 0.1)


def test_the_state_of_other_sources_survives_its_file(tmp_path):
    moved = state().of_sources(["a", "n"])
    moved.save(tmp_path / "state.json")
    assert TrainState.load(tmp_path / "state.json") == moved
