"""`destruct explain`: the table against the log it was made from, the replay against the weights that the run set."""

import ast
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from destruct.loop import train
from destruct.tracking.explanation import REASONS
from tests.recorded_runs import NAMES, REFERENCE, lines, record_runs, refused, said, told
from tests.test_doors import ROOT, go
from tests.tiny import tiny_run

STRATEGIES = ["second_order", "literal", "odm", "doremi", "uniform", "static", "temperature"]


@pytest.fixture(scope="module")
def logs(tmp_path_factory) -> Path:
    """A folder with the log of one run per strategy."""
    folder = tmp_path_factory.mktemp("runs")
    record_runs(folder, STRATEGIES)
    return folder


def check_the_replay_is_the_log(folder: Path, capsys) -> None:
    answer = told(capsys, folder)
    logged = [[line[f"curriculum/weight/{name}"] for name in NAMES] for line in lines(folder)]
    assert [[each["replayed"][name] for name in NAMES] for each in answer["history"]] == logged
    assert [[each["weight"][name] for name in NAMES] for each in answer["history"]] == logged
    assert answer["reproduced"] and "bit for bit" in answer["notes"][0]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_replay_sets_the_weights_of_the_log_bit_for_bit_and_of_an_exhausted_source_0(logs, capsys, strategy):
    check_the_replay_is_the_log(logs / strategy, capsys)
    last = lines(logs / strategy)[-1]
    assert (last["curriculum/exhausted/noise"], last["curriculum/weight/noise"]) == (1, 0)
    assert told(capsys, logs / strategy)["sources"]["noise"]["reason"] == "exhausted"


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["second_order", "literal", "odm"])
def test_a_real_run_that_was_resumed_in_the_middle_is_replayed_bit_for_bit(tmp_path, capsys, strategy):
    plan = [
        f"curriculum.strategy={strategy}",
        "run.num_epochs=1",
        "run.checkpoint_every=0",
        "ppo.epochs=1",
    ]
    for updates, resume in ((6, "never"), (12, "auto")):
        with tiny_run(tmp_path, *plan, f"run.updates_per_epoch={updates}", f"run.resume={resume}") as run:
            train(run)
    check_the_replay_is_the_log(run.folder, capsys)
    answer, figures = told(capsys, run.folder), lines(run.folder)
    assert (answer["round"], answer["rounds"], answer["panel_size"]) == (11, 12, 8)
    moved = [figure["curriculum/weight/noise"] for figure in figures]
    assert moved[:2] == [0.5, 0.5] and len(set(moved)) >= 9, "the weights moved"
    for name in NAMES:
        assert answer["sources"][name]["target"] == figures[-1][f"curriculum/target/{name}"]
        assert answer["sources"][name]["tokens"] == sum(figure[f"curriculum/tokens/{name}"] for figure in figures)
    # The last round's weights, as the run draws by them still: divided by their sum, which is 1 but for a rounding.
    assert [answer["sources"][name]["weight"] for name in NAMES] == run.mixture.shares(run.curriculum.weights).tolist()


def rows(text: str) -> dict[str, dict[str, str]]:
    """Source -> heading -> cell of a table without borders, whose columns are two blanks apart."""
    head, *body = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()[1:4]]
    return {cells[0]: dict(zip(head, cells, strict=True)) for cells in body}


def test_the_table_has_the_logs_figures_and_says_what_its_words_mean(logs, capsys):
    text = said(capsys, logs / "second_order")
    figures = lines(logs / "second_order")
    last, total = figures[-1], sum(f[f"curriculum/tokens/{name}"] for f in figures for name in NAMES)
    for name, cells in rows(text).items():
        now = {figure: last[f"curriculum/{figure}/{name}"] for figure in ("difficulty", "progress", "weight", "target")}
        loss, loss_se = map(float, cells["difficulty"].split(" ± "))
        assert loss == pytest.approx(now["difficulty"], abs=5.1e-4)
        assert loss_se == pytest.approx(last[f"curriculum/difficulty_se/{name}"], abs=5.1e-4)
        progress, progress_se = map(float, cells["progress"].split(" ± "))
        assert progress == pytest.approx(now["progress"], abs=5.1e-5)
        assert progress_se == pytest.approx(last[f"curriculum/progress_se/{name}"], abs=5.1e-5)
        assert cells["weight"] == f"{now['weight']:.3f}" and cells["target"] == f"{now['target']:.3f}"
        tokens = sum(figure[f"curriculum/tokens/{name}"] for figure in figures)
        assert (cells["tokens"], cells["drawn"]) == (f"{tokens:,.0f}", f"{tokens / total:.3f}")
        assert cells["epochs"] == f"{last[f'curriculum/epochs/{name}']:.2f}"
    assert [cells["prior"] for cells in rows(text).values()] == ["0.750", "0.250"], "3 to 1"
    assert [cells["reason"] for cells in rows(text).values()] == ["progress", "exhausted"]
    assert f"stability margin: {last['curriculum/stability_margin']:.3f}" in text
    assert f"exhausted: {REASONS['exhausted']}" in text and "floor: " not in text
    assert "rounds: 9; panel: 8 held-out windows" in text and "never an outcome" not in text


def test_a_narrow_terminal_gets_two_tables_of_which_no_cell_is_cut(logs, capsys, monkeypatch):
    for name, value in {"FORCE_COLOR": "1", "NO_COLOR": "1", "COLUMNS": "80", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    text = re.sub(r"\x1b\[[0-9;]*m", "", said(capsys, logs / "second_order"))
    table = [line for line in text.splitlines() if line[:1] in "┏┃┡│└"]
    assert max(map(len, table)) <= 80 and "…" not in text
    assert [line.split("┃")[1].strip() for line in table if "┃" in line] == ["source"] * 2
    assert [line.split()[1] for line in table if line.startswith("│")] == NAMES * 2


def test_an_earlier_round_is_explained_as_it_was_then(logs, capsys):
    answer, figures = told(capsys, logs / "second_order", "--round", 1), lines(logs / "second_order")
    assert (answer["round"], answer["update"], answer["rounds"]) == (1, 1, 2)
    for name in NAMES:
        source = answer["sources"][name]
        assert source["tokens"] == figures[1][f"curriculum/tokens/{name}"]
        assert (source["progress_se"], source["reason"]) == (None, "prior")
    assert answer["stability_margin"] is None
    text = said(capsys, logs / "second_order", "--round", 1)
    assert [cells["progress"] for cells in rows(text).values()] == ["-", "-"]
    assert "no weight moves before the third round" in text


def test_another_strategy_is_shown_beside_the_runs_weights_and_called_no_outcome(logs, capsys):
    """Exp3 by hand, before the end of noise: R = sum of D / 10 over the rounds 2 to 5, eps of 3 turns, then of 4."""
    asked, figures = (logs / "literal", "--strategy", "odm", "--round", 5), lines(logs / "literal")
    text, answer = said(capsys, *asked), told(capsys, *asked)
    reward = {name: sum(line[f"curriculum/difficulty/{name}"] for line in figures[2:6]) / 10 for name in NAMES}
    before, eps = (min(0.5, math.sqrt(math.log(2) / (2 * turns))) for turns in (3, 4))
    share = 1 / (1 + math.exp(before * (reward["noise"] - reward["arithmetic"])))
    source = answer["sources"]["arithmetic"]
    assert source["replayed"] == pytest.approx((1 - 2 * eps) * share + eps, rel=1e-12)
    assert source["weight"] == figures[5]["curriculum/weight/arithmetic"]
    assert not answer["of_the_run"] and answer["reproduced"]
    assert "literal, replayed: odm" in text and "never an outcome" in text
    assert rows(text)["arithmetic"]["replayed"] == f"{source['replayed']:.3f}"


def test_other_dials_are_replayed_and_named(logs, capsys):
    """Without damping, momentum and floor, and all progress counted: half of a step along q - w0 in each round."""
    dials = ["lam=0", "mu=0", "floor=0", "z=0", "credit=0", "repetition_epochs=null", "exploration_rounds=null"]
    asked = [word for dial in dials for word in ("--set", f"curriculum.{dial}")]
    answer = told(capsys, logs / "second_order", *asked, "--round", 2)
    line = lines(logs / "second_order")[2]
    gained = np.array([max(line[f"curriculum/progress/{name}"], 0) for name in NAMES])
    noise = sum(line[f"curriculum/progress_se/{name}"] for name in NAMES)
    confidence, prior = 0.8 * gained.sum() / (gained.sum() + noise), np.array([0.75, 0.25])
    target = confidence * gained / gained.sum() + (1 - confidence) * prior
    got = [answer["sources"][name]["replayed"] for name in NAMES]
    np.testing.assert_allclose(got, prior + 0.5 * (target - prior), rtol=1e-12)
    assert answer["strategy"].startswith("second_order mu=0.0 lam=0.0 floor=0.0 z=0.0")
    assert told(capsys, logs / "second_order", "--set", "curriculum.mu=0.5")["of_the_run"], "what the run has already"


def test_doremi_takes_reference_losses_from_the_command_line(logs, capsys):
    losses = [
        word for name, loss in REFERENCE.items() for word in ("--set", f"curriculum.reference_loss.{name}={loss}")
    ]
    answer = told(capsys, logs / "odm", "--strategy", "doremi", *losses)
    own = lines(logs / "doremi")[-1]["curriculum/weight/arithmetic"]
    assert answer["sources"]["arithmetic"]["replayed"] == own, "the estimates of both logs are the same"


def test_mistakes_are_told_in_two_lines(logs, tmp_path, capsys, monkeypatch):
    log = Path(shutil.copytree(logs / "second_order", tmp_path / "log"))
    monkeypatch.chdir(log)
    problem, remedy = refused(capsys, "nowhere")
    assert problem == "there is no run nowhere, neither a folder of that name nor one in runs/"
    (log.parent / "runs").symlink_to(logs)
    monkeypatch.chdir(log.parent)
    assert "doremi, literal, odm" in refused(capsys, "nowhere")[1]
    assert told(capsys, "odm")["run"] == "runs/odm"
    assert refused(capsys, log.parent)[0] == f"{log.parent} is not a run's folder: it has no resolved.yaml"
    for arguments, expected in {
        ("--strategy", "omd"): "argument --strategy: invalid choice: 'omd'",
        ("--round", 9): "there is no round 9",
        ("--set", "curriculum.etaa=1"): "command line: unknown key 'curriculum.etaa'",
        ("--set", "ppo.epochs=1"): "--set ppo.epochs=1: only keys of the curriculum",
        ("--set", "curriculum.kappa=1"): "--set curriculum.kappa=1: kappa decides what is measured",
        ("--set", "curriculum.strategy=odm"): "--set curriculum.strategy=odm: the strategy has an option",
        ("--set", "curriculum.eta=9"): "the sampling weights would oscillate without end",
        ("--strategy", "temperature"): "temperature weighs sources by their tokens",
        ("--strategy", "doremi"): "curriculum.strategy=doremi has no reference loss of source 'arithmetic'",
    }.items():
        assert expected in refused(capsys, log, *arguments)[0]
    (log / "metrics.jsonl").unlink()
    assert "cannot be read: No such file" in refused(capsys, log)[0]


def test_every_reason_that_a_strategy_gives_has_a_meaning():
    """The texts in `reasons`, `_why` and whatever is assigned to `_reasons`, and the names of signals."""
    given: set[str] = {"metric", "progress", "advantage", "reward_variance"}
    for name in ("strategies", "published", "weight_dynamics"):
        for node in ast.walk(ast.parse((ROOT / "destruct" / "curriculum" / f"{name}.py").read_text())):
            answers = isinstance(node, ast.FunctionDef) and node.name in ("reasons", "_why")
            if answers or (isinstance(node, ast.Assign) and "_reasons" in ast.unparse(node.targets[0])):
                texts = [leaf.value for leaf in ast.walk(node) if isinstance(leaf, ast.Constant)]
                given |= {text for text in texts if isinstance(text, str) and not text.endswith(".")}
    assert given == set(REASONS)


def test_it_answers_without_importing_torch(logs):
    done, modules = go(logs, "explain", "second_order")
    assert done.returncode == 0 and "bit for bit" in done.stdout and not done.stderr
    assert "destruct.curriculum.replay" in modules
    assert not modules & {"torch", "deepspeed", "transformers", "datasets"}


def test_a_terminal_without_unicode_gets_the_table_too(logs):
    done = subprocess.run(
        [sys.executable, "-m", "destruct.explain", str(logs / "odm")],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, b"") and b" ? " in done.stdout
