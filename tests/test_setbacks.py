"""A run that diverges keeps nothing of it, goes back to its last checkpoint, and draws on behind what went wrong."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from destruct import setbacks
from destruct.engine.single import SingleEngine
from destruct.errors import Diverged
from destruct.exits import Exit
from destruct.loop import train
from destruct.run import Run
from destruct.signals import Stopped
from tests.tiny import tiny_run

AUTO = ["run.resume=auto", "run.checkpoint_every=1", "run.keep_checkpoints=9"]


def spoil(engine: SingleEngine, where: str) -> None:
    """Let one number of a network be nan."""
    with torch.no_grad():
        if where == "weight":
            engine.masters[-1].view(-1)[0] = math.nan
            engine._publish()
        else:
            engine.optimizer.state[engine.masters[-1]]["exp_avg"].view(-1)[0] = math.nan


def before_update(run: Run, update: int, act: Callable[[], None]) -> None:
    """Do something when that update is about to begin."""
    pause = run.pause

    def paused() -> None:
        pause()
        if run.state.update == update and run.probe is not None:
            act()

    run.pause = paused


def windows(run: Run) -> set[tuple[int, int]]:
    """Which ones a run draws from here on, by their places in the whole order, in two batches."""
    afresh = run.mixture.afresh()
    afresh.load_state_dict(run.mixture.state_dict())
    draws = [afresh.draw(16, [0.5, 0.5]) for _ in range(2)]
    return {pair for draw in draws for pair in zip(draw.source.tolist(), draw.ordinal.tolist(), strict=True)}


@pytest.mark.parametrize(("network", "where"), [("policy", "moment"), ("value", "weight")])
def test_of_a_state_that_is_not_finite_nothing_is_saved_and_the_next_life_goes_on_elsewhere(tmp_path, network, where):
    with tiny_run(tmp_path, *AUTO) as run:
        before_update(run, 2, lambda: spoil(getattr(run, network), where))
        with pytest.raises(Diverged) as end:
            train(run)
        assert end.value.exit_code is Exit.RANK_FAILED
        assert str(end.value).startswith("training diverged in update")
        assert f"not finite: {network} on rank 0" in str(end.value)
        poisoned = windows_drawn(run)
    assert names(tmp_path)[-1] == "step-00000002", "the last one before it"
    with tiny_run(tmp_path, *AUTO) as run:
        assert run.state.update == 2
        ahead = windows(run)
        assert not ahead & poisoned, "what was drawn since is left out"
        assert windows_drawn(run) == poisoned
        train(run)
        assert run.state.update == 6 and not run.broken() and run.state.skipped == 0


def windows_drawn(run: Run) -> set[tuple[int, int]]:
    """All that a run has drawn so far, by source and place in its order."""
    return {(source, place) for source, drawn in enumerate(run.mixture.drawn) for place in range(drawn)}


def test_a_run_that_diverges_again_and_again_ends_with_77(tmp_path):
    codes = []
    for _ in range(4):
        with tiny_run(tmp_path, *AUTO, "guard.restarts=2") as run:
            before_update(run, 2, lambda run=run: spoil(run.policy, "weight"))
            with pytest.raises(Diverged) as end:
                train(run)
            codes.append(end.value.exit_code)
    assert codes == [76, 76, 77, 77]
    kept = setbacks.known(tmp_path / "tiny")
    assert [(entry.update, entry.to) for entry in kept] == [(2, "step-00000002")] * 4
    draws = [entry.mixture["draws"] for entry in kept]
    assert draws == sorted(set(draws)), "each life got further in the data"


def test_a_single_bad_batch_is_dropped_and_training_goes_on(tmp_path):
    """Two updates in a row are fewer than three."""
    with tiny_run(tmp_path, *AUTO) as run:
        hooks = []
        head = run.value.module.head
        before_update(
            run, 2, lambda: hooks.append(head.register_forward_hook(lambda *answered: answered[-1] * math.nan))
        )
        paused = run.pause

        def mended() -> None:
            if run.state.update == 4:
                hooks[0].remove()
            paused()

        run.pause = mended
        train(run)
        assert (run.state.skipped, run.state.skipped_in_a_row, run.state.optimizer_steps) == (8, 0, 16)
    assert not {"step-00000003", "step-00000004"} & set(names(tmp_path)), "nobody knows yet what comes of it"
    saved = json.loads((tmp_path / "tiny/checkpoints/step-00000005/state.json").read_text())
    assert saved["curriculum"]["since_the_round"]["batches"] == 1 and "NaN" not in json.dumps(saved["curriculum"])
    assert saved["rewards"][2] == saved["rewards"][3] == [[0.0, 0.0], [0.0, 0.0]]


def explode(run: Run) -> None:
    """Let the value network say so much that its loss is infinite, though every number of it is finite."""
    run.value.module.head.bias.data.fill_(1e30)


def test_three_bad_updates_in_a_row_set_the_run_back_to_before_the_first_though_all_weights_are_finite(tmp_path):
    """Nothing is saved in between, though a checkpoint is due after each update and only two are kept."""
    for update in (2, 99):
        with tiny_run(tmp_path, *AUTO, "run.keep_checkpoints=2") as run:
            before_update(run, update, lambda run=run: explode(run))
            if update == 99:
                assert run.state.update == 2 and run.state.skipped_in_a_row == 0
                train(run)
                continue
            with pytest.raises(Diverged, match="in update 4: .*, 3 times in a row") as end:
                train(run)
            assert end.value.exit_code is Exit.RANK_FAILED
            assert names(tmp_path) == ["step-00000001", "step-00000002"]
    assert run.state.update == 6 and run.state.skipped == 0


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "tiny/checkpoints").glob("step-*"))


def test_what_is_saved_between_bad_updates_as_the_run_is_stopped_takes_the_place_of_nothing(tmp_path, monkeypatch):
    """The next life goes on from there, counts on, and is set back to before."""
    with tiny_run(tmp_path, *AUTO, "run.keep_checkpoints=1") as run:
        before_update(run, 2, lambda: explode(run))
        act, stop = run.pause, []

        def stopped() -> None:
            if run.state.update == 4:
                run.signals.received = 15
                stop.append(1)
            act()

        run.pause = stopped
        with pytest.raises(Stopped):
            train(run)
        assert stop and names(tmp_path) == ["step-00000002", "step-00000004"]
    with tiny_run(tmp_path, *AUTO, "run.keep_checkpoints=1") as run:
        assert (run.state.update, run.state.skipped_in_a_row) == (4, 2)
        run.value.module.head.bias.data.fill_(1e30)
        with pytest.raises(Diverged):
            train(run)
        assert names(tmp_path) == ["step-00000002"]


def test_a_line_of_a_life_that_was_killed_in_it_hides_no_other(tmp_path):
    first = setbacks.Setback(7, "step-00000005", "x", {"draws": 7})
    assert setbacks.record(tmp_path, first) == 1
    with (tmp_path / setbacks.FILE).open("a") as file:
        file.write('{"update": 9, "to": "st')
    assert setbacks.record(tmp_path, setbacks.Setback(9, "step-00000005", "x", {"draws": 9})) == 2
    assert setbacks.record(tmp_path, setbacks.Setback(12, "step-00000010", "x", {"draws": 12})) == 1
    here = {"draws": 5}
    assert setbacks.beyond(tmp_path, "step-00000005", here) == {"draws": 9}
    assert setbacks.beyond(tmp_path, "step-00000004", here) == here, "chosen by a person"


def test_a_warm_up_that_diverges_ends_with_77_and_says_so(tmp_path):
    much = ["warmup.lm_lr=1e30", "ppo.max_grad_norm=1e30"]
    with tiny_run(tmp_path, *AUTO, *much) as run, pytest.raises(Diverged) as end:
        train(run)
    assert end.value.exit_code is Exit.DIVERGED
    assert "training diverged in the warm-up" in str(end.value) and "lower the learning rates" in str(end.value)
    assert not list(Path(tmp_path / "tiny").glob(setbacks.FILE))
