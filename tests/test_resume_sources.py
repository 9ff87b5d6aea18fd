"""Runs whose sources come, go and change places between two lives, in one process on the `single` backend."""

import json
from pathlib import Path

import numpy as np
import pytest

from destruct.checkpoint.state import TrainState
from destruct.loop import train
from destruct.run import Run
from destruct.summarizing import summarize
from tests.test_resume_from import figures
from tests.tiny import tiny_run

pytestmark = pytest.mark.slow

ARITHMETIC, NOISE = "arithmetic: {embedded: arithmetic}", "noise: {embedded: noise, learnable: false}"
MARKOV = "markov: {embedded: markov}"
ONE_EPOCH = ["run.num_epochs=1"]  # of three updates; the plan of tests/tiny.py has two


def sources(*lines: str) -> str:
    return f"data.sources={{{', '.join(lines)}}}"


def first_life(folder: Path, *lines: str) -> Run:
    with tiny_run(folder, sources(*lines), *ONE_EPOCH) as run:
        train(run)
    return run


def logged(run: Run, name: str) -> list[int]:
    """Steps of the lines of metrics.jsonl that hold a figure."""
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if name in line]


def test_a_source_that_comes_starts_at_its_prior_share_and_the_run_says_so(tmp_path, capsys):
    before = first_life(tmp_path, ARITHMETIC, NOISE)
    checkpoint = before.store.path(3)
    with tiny_run(tmp_path, sources(ARITHMETIC, MARKOV, NOISE), "run.resume=auto", aloud=True) as run:
        said = capsys.readouterr().out.splitlines()
        assert "source 'markov' is new: it starts at its prior share of 33.3%" in said
        assert f"resumed after update 3 from {checkpoint}" in said
        assert not [line for line in said if "is gone" in line]
        assert run.names == ["arithmetic", "markov", "noise"]
        assert run.mixture.drawn == [before.mixture.drawn[0], 0, before.mixture.drawn[1]]
        assert run.curriculum.weights[1] == pytest.approx(1 / 3) and run.curriculum.weights.sum() == pytest.approx(1)
        assert run.tokenizer.text == (checkpoint / "tokenizer.json").read_text(), "not trained anew on three"
        train(run)
        told = summarize(run)
    assert run.state.update == 6 and [len(row) for row in run.state.rewards] == [3] * 6
    rollouts = np.array(run.state.rewards)[:, :, 1]
    assert rollouts[:3, 1].tolist() == [0, 0, 0] and rollouts[3:, 1].min() > 0
    assert rollouts.sum(1).tolist() == [16] * 6
    assert logged(run, "curriculum/weight/markov") == [3, 4, 5]
    assert logged(run, "curriculum/weight/noise") == [0, 1, 2, 3, 4, 5]
    assert told.validation_loss_after.keys() == {"arithmetic", "markov", "noise", "mean"}
    assert told.validation_loss_before == before.state.validation["before"]
    assert told.best_update in (None, 6), "3 was the best by a mean over other sources"
    assert TrainState.load(run.store.path(6) / "state.json").sources == run.names


def test_the_share_of_a_source_that_goes_falls_to_the_others_and_the_run_says_so(tmp_path, capsys):
    before = first_life(tmp_path, ARITHMETIC, MARKOV, NOISE)
    owed = before.mixture.state_dict()["deficits"]
    with tiny_run(tmp_path, sources(ARITHMETIC, NOISE), "run.resume=auto", aloud=True) as run:
        said = capsys.readouterr().out.splitlines()
        assert "source 'markov' is gone: its share falls to the others" in said
        assert not [line for line in said if "is new" in line]
        assert run.mixture.drawn == [before.mixture.drawn[0], before.mixture.drawn[2]]
        left = run.mixture.state_dict()["deficits"]
        assert sum(left.values()) == pytest.approx(0) and all(abs(x) <= abs(owed[name]) for name, x in left.items())
        assert run.state.rewards == [[row[0], row[2]] for row in before.state.rewards]
        assert run.curriculum.weights.sum() == pytest.approx(1)
        train(run)
        summarize(run)
    assert run.state.update == 6 and [sum(n for _, n in row) for row in run.state.rewards[3:]] == [16] * 3
    assert logged(run, "curriculum/weight/markov") == [0, 1, 2]


def test_a_source_that_comes_back_is_new_again(tmp_path, capsys):
    first_life(tmp_path, ARITHMETIC, NOISE)
    with tiny_run(tmp_path, sources(ARITHMETIC, MARKOV), "run.resume=auto", "run.updates_per_epoch=2") as run:
        train(run)
    assert run.state.update == 4
    with tiny_run(tmp_path, sources(ARITHMETIC, NOISE), "run.resume=auto", aloud=True) as again:
        said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("source ")]
        assert said[0].startswith("source 'noise' is new") and said[1].startswith("source 'markov' is gone")
        assert again.mixture.drawn == [run.mixture.drawn[0], 0]
        train(again)
    assert again.state.update == 6


def test_the_order_of_the_sources_in_the_config_moves_no_digit_of_a_run_or_of_a_resume(tmp_path, capsys):
    """Tie-breaks, sums over sources, the trained tokenizer: all go by name."""
    orders = {"straight": (ARITHMETIC, MARKOV, NOISE), "turned": (NOISE, ARITHMETIC, MARKOV)}
    whole = {}
    for name, order in orders.items():
        with tiny_run(tmp_path, sources(*order), f"run.name={name}") as run:
            train(run)
        whole[name] = figures(run)
    assert whole["turned"] == whole["straight"]
    at_three = f"run.resume={tmp_path / 'straight' / 'checkpoints' / 'step-00000003'}"
    with tiny_run(tmp_path, sources(*orders["turned"]), "run.name=straight", at_three, aloud=True) as resumed:
        said = capsys.readouterr().out
        assert "is new" not in said and "is gone" not in said and "best checkpoint" not in said
        train(resumed)
    assert figures(resumed) == whole["straight"]


def test_a_finished_run_that_gets_a_source_and_no_update_tells_the_loss_of_it(tmp_path):
    first_life(tmp_path, ARITHMETIC, NOISE)
    with tiny_run(tmp_path, sources(ARITHMETIC, MARKOV, NOISE), *ONE_EPOCH, "run.resume=auto") as run:
        train(run)
        told = summarize(run)
    assert told.updates == 3 and told.validation_loss_after.keys() == {"arithmetic", "markov", "noise", "mean"}
