"""Where a run goes on from, and that from there it is the run that was never interrupted."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from destruct.checkpoint.state import TrainState
from destruct.loop import train
from destruct.run import Run
from destruct.summarizing import summarize
from tests.test_epochs import DOWN_UP_DOWN, kept, with_rates
from tests.tiny import tiny_run

pytestmark = pytest.mark.slow

EVERY = ["run.evaluate_every=1", "run.checkpoint_every=1", "run.keep_checkpoints=9"]


def uninterrupted(folder: Path, *overrides: str) -> Run:
    """Six updates with a checkpoint after each; the losses make 1, 2 and 4 the best of their time."""
    with tiny_run(folder, *EVERY, *overrides) as run:
        with_rates(run, *DOWN_UP_DOWN)
        train(run)
    return run


def figures(run: Run) -> list[dict]:
    """The lines of metrics.jsonl without what is of the machine, then the samples."""
    metrics, samples = (
        [json.loads(line) for line in (run.folder / name).read_text().split("\n")[:-1]]
        for name in ("metrics.jsonl", "samples.jsonl")
    )
    kept = [{key: x for key, x in line.items() if not key.startswith(("time/", "memory/"))} for line in metrics]
    return kept + samples


def state(run: Run) -> dict:
    return dataclasses.asdict(run.state) | {"seconds": None}


def weights(run: Run) -> list[torch.Tensor]:
    return [master.detach().clone() for engine in (run.policy, run.value) for master in engine.masters]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def pointers(run: Run) -> list[str]:
    paths = [run.store.folder / name for name in ("latest", "best")]
    return [path.read_text().strip()[-1] if path.exists() else "-" for path in paths]


def test_from_an_older_checkpoint_of_its_own_folder_a_run_repeats_itself_bit_for_bit(tmp_path):
    """Back after 3 of 6 updates: later lines go, later checkpoints are given up, untouched."""
    whole = uninterrupted(tmp_path)
    before, figures_before = contents(whole.store.folder), figures(whole)
    assert pointers(whole) == ["6", "4"]
    with tiny_run(tmp_path, *EVERY, f"run.resume={whole.store.path(3)}") as run:
        assert pointers(run) == ["3", "2"], "4 is of the future that was given up"
        assert (run.state.update, run.state.best_update, kept(run)) == (3, 2, [1, 2, 3])
        after = {name.removeprefix("given-up/"): x for name, x in contents(run.store.folder).items()}
        assert {name for name, x in after.items() if x != before[name]} == {"latest", "best"}
        assert after.keys() == before.keys()
        assert [line["step"] for line in figures(run) if "ppo/steps" in line] == [0, 1, 2]
        with_rates(run, *DOWN_UP_DOWN)
        train(run)
    assert figures(run) == figures_before
    assert state(run) == state(whole)
    assert all(torch.equal(a, b) for a, b in zip(weights(run), weights(whole), strict=True))
    assert pointers(run) == ["6", "4"]


def test_after_a_return_to_the_past_auto_goes_on_from_there_and_not_from_the_future(tmp_path):
    whole = uninterrupted(tmp_path)
    with tiny_run(tmp_path, *EVERY, f"run.resume={whole.store.path(2)}"):
        pass  # killed before its first checkpoint
    with tiny_run(tmp_path, *EVERY, "run.resume=auto") as run:
        assert run.state.update == 2
        assert len(figures(run)) > 0 and max(line["step"] for line in figures(run) if "ppo/steps" in line) == 1


def test_worse_from_there_on_the_best_is_the_one_before_and_is_kept(tmp_path):
    """Back after 2, now with rising losses: 4, which was better, is of the other future."""
    whole = uninterrupted(tmp_path)
    fewer = ["run.evaluate_every=1", "run.checkpoint_every=1", "run.keep_checkpoints=1", "run.num_epochs=1"]
    with tiny_run(tmp_path, *fewer, f"run.resume={whole.store.path(2)}", "run.updates_per_epoch=5") as run:
        with_rates(run, *[-1e-3] * 6)
        train(run)
        assert pointers(run) == ["5", "2"]
        assert kept(run) == [2, 5], "1, 3 and 4 of this run are retired; 6 was given up and does not count"
        assert summarize(run).best_update == 2


def test_from_another_runs_checkpoint_a_run_starts_its_own_folder_and_is_equal_from_there(tmp_path):
    """An older folder of its name is put aside; the other run's is not touched."""
    whole = uninterrupted(tmp_path)
    other = contents(whole.folder)
    (tmp_path / "fork").mkdir()
    (tmp_path / "fork" / "summary.json").write_text("older")
    with tiny_run(tmp_path, *EVERY, "run.name=fork", f"run.resume={whole.store.path(3)}") as run:
        assert pointers(run) == ["-", "-"], "nothing is saved here yet"
        assert (run.state.update, run.state.best_update) == (3, 2)
        with_rates(run, *DOWN_UP_DOWN)
        train(run)
    assert contents(tmp_path / "fork.1") == {"summary.json": b"older"}
    assert contents(whole.folder) == other
    since = [line for line in figures(whole) if line.get("phase", "ppo") == "ppo" and line.get("step", 3) >= 3]
    assert figures(run) == [line for line in since if line.get("update", 3) >= 3]
    assert state(run) == state(whole)
    assert all(torch.equal(a, b) for a, b in zip(weights(run), weights(whole), strict=True))
    assert (kept(run), pointers(run)) == ([4, 5, 6], ["6", "4"])


@pytest.mark.parametrize(("path", "update"), [("checkpoints/latest", 6), ("checkpoints/best", 4), ("", 6)])
def test_a_pointer_or_a_runs_folder_names_the_checkpoint_to_start_from(tmp_path, path, update):
    whole = uninterrupted(tmp_path)
    written = dataclasses.asdict(TrainState.load(whole.store.path(update) / "state.json"))
    with tiny_run(tmp_path, "run.name=fork", f"run.resume={whole.folder / path}") as run:
        assert run.state.update == update
        assert state(run) == written | {"seconds": None}


def test_a_fork_whose_start_was_never_surpassed_has_no_best_of_its_own(tmp_path):
    whole = uninterrupted(tmp_path)
    with tiny_run(tmp_path, *EVERY, "run.name=fork", f"run.resume={whole.store.folder / 'best'}") as run:
        with_rates(run, *[-1e-3] * 6)
        train(run)
        assert pointers(run) == ["6", "-"]
        assert summarize(run).best_update == 4
        assert summarize(run).files["best checkpoint"] == "none in this folder"
    with tiny_run(tmp_path, *EVERY, "run.name=fork", "run.resume=auto") as again:
        assert pointers(again) == ["6", "-"], "and none to what is not here, when it is resumed itself"


def test_a_finished_run_that_is_resumed_without_a_new_update_tells_the_same_losses_and_best(tmp_path):
    whole = uninterrupted(tmp_path)
    told = summarize(whole)
    with tiny_run(tmp_path, *EVERY, "run.resume=auto") as run:
        train(run)
        again = summarize(run)
    names = ("validation_loss_after", "best_update", "best_validation_loss", "files", "updates")
    assert {name: getattr(again, name) for name in names} == {name: getattr(told, name) for name in names}
