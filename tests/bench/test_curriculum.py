"""The curriculum benchmark: what its runs are functions of, and how they are kept, not which strategy is better."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from bench import curriculum, curriculum_judge, curriculum_results
from bench.curriculum_run import Training, run
from bench.curriculum_settings import Settings
from bench.curriculum_workers import finished, uninterrupted
from destruct.errors import DestructError
from tests.bench.tiny_sources import MIXTURES, T
from tests.processes import runs

ROOT = Path(__file__).resolve().parents[2]
TINY = Settings(
    mixture="waste",
    sources=list(MIXTURES["waste"]),
    strategy="second_order",
    seed=0,
    budget=20_000,
    catalogue="tests.bench.tiny_sources",
    batch=8,
    warmup_tokens=1_000,
    round_tokens=2_000,
    evaluate_tokens=5_000,
    panel_windows=40,
    panel_size=10,
    test_windows=6,
    learning_rate=5e-3,
    rising_steps=5,
    hidden_size=16,
    intermediate_size=32,
    num_layers=1,
)


@pytest.fixture(scope="module")
def tiny():
    """One run of `second_order`."""
    torch.set_num_threads(1)
    return run(TINY)


@pytest.mark.slow
def test_a_run_is_a_function_of_its_settings(tiny):
    again = run(TINY)
    assert {**again, "seconds": 0} == {**tiny, "seconds": 0}
    assert run(replace(TINY, seed=1))["curve"]["excess"] != tiny["curve"]["excess"]


@pytest.mark.slow
def test_rounds_are_charged_and_evaluations_are_due_by_what_is_charged(tiny):
    """Each of the rounds scores ten windows or more of each of the three sources."""
    used, trained = tiny["curve"]["budget_used"], tiny["curve"]["trained"]
    assert used[-1] == pytest.approx(tiny["trained_tokens"] + tiny["probe_tokens"] / 3)
    assert TINY.budget <= used[-1] < TINY.budget + 1_000
    assert tiny["probe_tokens"] >= len(tiny["rounds"]["weights"]) * 3 * 10 * T
    assert [int(each // 5_000) for each in used] == [0, 1, 2, 3, 4]
    assert [sum(each) for each in tiny["curve"]["drawn"]] == trained


@pytest.mark.slow
def test_weights_move_and_do_so_by_name(tiny):
    """The sources in reverse order: every weight, draw and loss is the same, up to the order of sums."""
    turned = run(replace(TINY, sources=TINY.sources[::-1]))
    assert np.abs(np.diff(tiny["rounds"]["weights"], axis=0)).max() > 1e-3
    assert curriculum_judge.permutation_error(tiny, turned) < 1e-12
    assert [row[::-1] for row in turned["curve"]["excess"]] == tiny["curve"]["excess"]
    assert [row[::-1] for row in turned["curve"]["drawn"]] == tiny["curve"]["drawn"]


@pytest.mark.slow
def test_strategies_of_a_seed_are_pairs(tiny):
    """The same model before the first step; uniform draws as much of each and makes no round."""
    uniform = run(replace(TINY, strategy="uniform", panel_size=None))
    assert uniform["curve"]["excess"][0] == tiny["curve"]["excess"][0]
    assert uniform["curve"]["excess"][-1] != tiny["curve"]["excess"][-1]
    assert uniform["rounds"] == {} and uniform["probe_tokens"] == 0
    assert uniform["epochs"] == pytest.approx([20_096 / 3 / (12_000 // T * T)] * 3, abs=0.01)


def test_excess_is_the_loss_beyond_the_entropy_of_the_windows():
    """Of the coins, by the logits in float64: each byte but the first costs ln 2 more than what is reported."""
    training = Training(TINY)
    windows = training.test[0].select(torch.arange(6))
    with torch.no_grad():
        logits = training.policy(windows.tokens, torch.arange(6 * T), None, windows.positions)
    log_p = logits.double().log_softmax(-1).view(6, T, -1)[:, :-1]
    loss = -log_p.gather(2, windows.tokens[:, 1:, None]).mean().item()
    assert training.evaluate()["excess"][0] == pytest.approx(loss - math.log(2), rel=1e-5)


def test_results_outlast_a_line_that_was_cut_off(tmp_path):
    file = tmp_path / "results.jsonl"
    assert curriculum_results.read(file) == {}
    curriculum_results.append(file, "a@1", {"seconds": 1})
    curriculum_results.append(file, "b@1", {"seconds": 2})
    file.write_bytes(file.read_bytes()[:-9])
    assert list(curriculum_results.read(file)) == ["a@1"]
    added = curriculum_results.append(file, "c@1", {"seconds": 3})
    found = curriculum_results.read(file)
    assert found["c@1"] == added
    assert {name: each["seconds"] for name, each in found.items()} == {"a@1": 1, "c@1": 3}
    assert found["c@1"]["commit"] == "1"


def test_a_commit_is_that_of_the_named_paths_and_says_what_is_not_in_it(tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=tmp_path, check=True)

    monkeypatch.setattr(curriculum_results, "ROOT", tmp_path)
    git("init", "-q")
    for name in ("code", "other"):
        (tmp_path / name).write_text("first")
        git("add", name)
        git("commit", "-qm", name)
    clean = curriculum_results.commit(("code",))
    assert clean != curriculum_results.commit(("other",)) and "+" not in clean
    (tmp_path / "other").write_text("second")
    assert curriculum_results.commit(("code",)) == clean
    changed = []
    for text in ("second", "third"):
        (tmp_path / "code").write_text(text)
        changed.append(curriculum_results.commit(("code",)))
    assert all(each.startswith(f"{clean}+") for each in changed) and changed[0] != changed[1]


def test_keys_differ_by_all_that_a_run_depends_on():
    uniform = replace(TINY, strategy="uniform", panel_size=None)
    others = [
        TINY,
        replace(TINY, seed=1),
        replace(TINY, overrides={"z": 0.0}),
        replace(TINY, sources=["coins"]),
        uniform,
    ]
    assert len({curriculum_results.key(each) for each in others}) == len(others)


def test_options_name_strategies_overrides_and_seeds():
    read = curriculum.read_strategies
    assert read("uniform,second_order[z=0.5,eta=0.25],literal", ["kappa=1"]) == [
        ("uniform", {}),
        ("second_order", {"kappa": 1, "z": 0.5, "eta": 0.25}),
        ("literal", {"kappa": 1}),
    ]
    assert curriculum.read_seeds("3") == [0, 1, 2] and curriculum.read_seeds("4,") == [4]
    label = Settings("waste", [], "second_order", 0, 1, overrides={"z": 0.5, "eta": 0.25}).label
    assert label == "second_order[eta=0.25,z=0.5]"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--strategies", "sorted"], "sorted"),
        (["--set", "etta=1"], "etta"),
        (["--set", "eta"], "eta"),
        (["--mixture", "mud"], "mud"),
        (["--seeds", "0"], "--seeds 0"),
        (["--strategies", "uniform[z=1]"], "uniform[z=1]"),
    ],
)
def test_a_mistake_is_named_before_anything_runs(arguments, named):
    options = curriculum.read_options([*arguments, "--catalogue", "tests.bench.tiny_sources"])
    with pytest.raises(DestructError, match=r"(?s).*") as caught:
        curriculum.planned(options)
    assert named in caught.value.problem


@pytest.mark.slow
def test_finished_runs_are_kept_and_the_missing_ones_made(tmp_path, tiny):
    """In processes of their own runs are what they are in this one; of a changed line the change comes back."""
    file = tmp_path / "results.jsonl"
    wanted = [TINY, replace(TINY, strategy="uniform", panel_size=None)]
    (first,) = finished(wanted[:1], file, jobs=2)
    assert {name: first[name] for name in tiny if name != "seconds"} == {
        name: tiny[name] for name in tiny if name != "seconds"
    }
    file.write_text(json.dumps({**first, "seconds": 12345}) + "\n")
    both = finished(wanted, file, jobs=2)
    assert both[0]["seconds"] == 12345 and both[1]["settings"]["strategy"] == "uniform"
    assert len(file.read_text().splitlines()) == 2


@pytest.mark.slow
def test_a_run_that_fails_is_an_error_with_its_last_words(tmp_path):
    with pytest.raises(DestructError, match="No module named 'no_sources'"):
        finished([replace(TINY, catalogue="no_sources")], tmp_path / "results.jsonl", jobs=1)


def test_an_interrupt_waits_for_the_end_of_the_block():
    before = signal.getsignal(signal.SIGTERM)
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
    steps = []
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        signal.raise_signal(signal.SIGINT)
        steps.append("went on")
    signal.signal(signal.SIGINT, ours)
    assert steps == ["went on"] and signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_workers_and_keeps_what_is_finished(ending, tmp_path):
    """Two runs at a time of four: interrupted when the first one is finished."""
    file = tmp_path / "results.jsonl"
    sizes = ["--budget", "20000", "--seeds", "4", "--strategies", "uniform", "--catalogue", "tests.bench.tiny_sources"]
    command = [
        sys.executable,
        "-m",
        "bench.curriculum",
        *sizes,
        "--results",
        str(file),
        "--curves",
        str(tmp_path / "c"),
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    started = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job ignores the signal, and its children would too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not (file.exists() and file.read_text().endswith("\n")) and time.monotonic() < deadline:
        time.sleep(0.1)
    workers = psutil.Process(started.pid).children()
    started.send_signal(ending)
    _, said = started.communicate(timeout=60)
    assert started.returncode == 130 and "the finished runs are kept" in said
    assert workers and not any(map(runs, workers))
    assert 1 <= len(curriculum_results.read(file)) < 4
