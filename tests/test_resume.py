"""What a run's folder is continued with and what it is not, in one process on the `single` backend."""

import json
import re
import sys
import types
from pathlib import Path

import pytest

from destruct.train import main
from tests.tiny import ROOT, logging_as_before, write_config

pytestmark = pytest.mark.slow

SHORT = ["engine.backend=single", "run.num_epochs=1", "run.updates_per_epoch=2", "run.checkpoint_every=0"]
LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder in which a run of two updates ended."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        train(patch, folder)
    return folder


def train(patch: pytest.MonkeyPatch, folder: Path, *overrides: str) -> int:
    for name in LAUNCHER:
        patch.setenv(name, "")  # so that what the run sets is taken back
        patch.delenv(name)
    with logging_as_before():  # or the next run speaks into the log of this one until it has its own
        return main(["--config", str(write_config(folder)), *SHORT, *overrides])


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".lock"
    }


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.policy.hidden_size=64", "model.policy.hidden_size = 32; this is 64"),
        ("model.value.num_hidden_layers=2", "model.value.num_hidden_layers = 1; this is 2"),
        ("run.seed=4", "run.seed = 3; this is 4"),
        ("rollout.prompt_tokens=4", "rollout.prompt_tokens = 8; this is 4"),
        ("rollout.response_tokens=16", "rollout.response_tokens = 8; this is 16"),
        ("data.tokenizer.vocab_size=400", "data.tokenizer"),
        ("data.sources.noise.prior=2.0", "data.sources.noise.prior = None; this is 2.0"),
        ("data.sources={more: {embedded: markov}}", "was trained on arithmetic, noise, and data.sources has none of"),
        ("engine.backend=deepspeed", "engine.backend = single; this is deepspeed"),
        ("kl.coef=0.5", "kl.coef = 0.05; this is 0.5"),
        ("curriculum.strategy=uniform", "curriculum.strategy = second_order; this is uniform"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_and_nothing_is_touched(folder, monkeypatch, capsys, override, said):
    before = contents(folder)
    capsys.readouterr()
    assert train(monkeypatch, folder, "run.resume=auto", override) == 2
    problem, remedy = capsys.readouterr().err.splitlines()
    assert said in problem and "step-00000002" in problem
    assert remedy.startswith("  remedy: ")
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ('"stage": 2', "zero_optimization.stage = 3; this is 2"),
        ('"enabled": false', "bf16 = True; this is False"),
        ('"betas": [0.5, 0.95]', "optimizer.params.betas = [0.9, 0.95]; this is [0.5, 0.95]"),
    ],
)
def test_a_json_that_the_checkpoints_optimizer_would_not_follow_is_refused(folder, monkeypatch, capsys, key, said):
    name, _, _ = key.partition(":")
    text = (ROOT / "ds_configs" / "zero3.json").read_text()
    changed = folder / "changed.json"
    changed.write_text(re.sub(rf"{name}: (true|\d|\[[^]]*\])", key, text))
    assert changed.read_text() != text
    assert train(monkeypatch, folder, "run.resume=auto", f"engine.deepspeed={changed}") == 2
    assert said in capsys.readouterr().err


def say_no(folder, monkeypatch, capsys, *arguments: str) -> tuple[str, str]:
    """Problem and remedy of a run that must end with exit code 2 and leave the folder as it was."""
    before = contents(folder)
    capsys.readouterr()
    assert train(monkeypatch, folder, *arguments) == 2
    problem, remedy = capsys.readouterr().err.splitlines()
    assert contents(folder) == before
    return problem.removeprefix("destruct: "), remedy.removeprefix("  remedy: ")


def test_a_path_without_a_checkpoint_is_refused_and_never_a_start_from_scratch(folder, monkeypatch, capsys):
    for name, problem in {"absent": "does not exist", "tiny/logs": "holds no checkpoint: "}.items():
        for run in ("run.name=tiny", "run.name=new"):
            said, remedy = say_no(folder, monkeypatch, capsys, "--resume", str(folder / name), run)
            assert said.startswith(f"run.resume: {folder / name} {problem}")
            assert remedy.startswith("name a checkpoint (step-XXXXXXXX)")


def test_a_damaged_checkpoint_is_refused_by_auto_and_by_its_path(folder, monkeypatch, capsys):
    state = folder / "tiny" / "checkpoints" / "step-00000002" / "policy" / "state.pt"
    whole = state.read_bytes()
    state.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        for place in ("auto", str(state.parents[1]), str(folder / "tiny")):
            for run in ("run.name=tiny", "run.name=new") if place != "auto" else ("run.name=tiny",):
                problem, _ = say_no(folder, monkeypatch, capsys, "--resume", place, run)
                assert problem == f"{state} is not the file that was saved: its digest is another one"
    finally:
        state.write_bytes(whole)


def test_another_runs_checkpoint_is_refused_where_the_models_differ(folder, monkeypatch, capsys):
    other = ["run.name=new", "model.policy.hidden_size=64"]
    problem, _ = say_no(folder, monkeypatch, capsys, "--resume", str(folder / "tiny"), *other)
    assert "step-00000002 was written with model.policy.hidden_size = 32; this is 64" in problem


def test_auto_without_a_checkpoint_starts_from_the_beginning_and_says_so(folder, monkeypatch, capsys):
    assert train(monkeypatch, folder, "--resume", "auto", "run.name=first") == 0
    assert f"no checkpoint in {folder / 'first'}: this run starts from the beginning" in capsys.readouterr().out
    (folder / "first" / "checkpoints" / "latest").unlink()
    capsys.readouterr()
    assert train(monkeypatch, folder, "--resume", "auto", "run.name=first") == 0
    said = capsys.readouterr().out
    assert "warning: " in said and "/first/checkpoints/latest names '', and step-00000002 is the newest here" in said
    assert "resumed after update 2" in said
    assert (folder / "first" / "checkpoints" / "latest").read_text() == "step-00000002\n"


def test_the_frozen_model_is_the_policy_at_each_round_and_an_older_one_between(folder, monkeypatch):
    """Tokens sampled right after a refresh have the same logprob under both: their sampled KL is exactly 0."""
    assert train(monkeypatch, folder, "run.name=refreshed", "run.num_epochs=5", "frozen.refresh_every=3") == 0
    steps = [json.loads(line) for line in (folder / "refreshed" / "metrics.jsonl").read_text().splitlines()]
    kl = [line["kl/sampled"] for line in steps if "kl/sampled" in line]
    assert [u for u in range(10) if kl[u] == 0] == [0, 3, 6, 9]


def test_a_finished_run_is_continued_to_a_longer_plan(folder, monkeypatch):
    assert train(monkeypatch, folder, "run.resume=auto", "run.num_epochs=2") == 0
    summary = json.loads((folder / "tiny" / "summary.json").read_text())
    assert summary["updates"] == 4
    state = json.loads((folder / "tiny" / "checkpoints" / "step-00000004" / "state.json").read_text())
    assert summary["seconds"] >= state["seconds"], "of both processes"
    steps = [json.loads(line) for line in (folder / "tiny" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if "ppo/steps" in line] == [0, 1, 2, 3]
    validated = [line["step"] for line in steps if line["phase"] == "ppo" and "validation/mean" in line]
    assert validated == [1, 3], "each epoch of two updates ends with one"


def test_starting_anew_puts_the_older_folder_aside(folder, monkeypatch):
    old = contents(folder / "tiny")
    assert train(monkeypatch, folder) == 0
    aside = contents(folder / "tiny.1")
    assert list(aside.values()) == list(old.values())
    assert json.loads((folder / "tiny" / "summary.json").read_text())["updates"] == 2


def test_a_run_whose_last_checkpoint_could_not_be_written_says_so_and_ends_with_3(folder, monkeypatch, capsys):
    """A file lies where the folder of the checkpoints should come; a reward function puts it there in mid-run."""

    def reward(prompts, responses, continuations):
        if (folder / "stuck").exists():
            (folder / "stuck" / "checkpoints").write_text("in the way")
        return [0.0] * len(prompts)

    module = types.ModuleType("obstacle")
    module.reward = reward
    monkeypatch.setitem(sys.modules, "obstacle", module)
    terms = "reward.terms={'obstacle:reward': 1.0}"
    assert train(monkeypatch, folder, "run.name=stuck", "run.checkpoint_every=0", terms) == 3
    said = capsys.readouterr()
    assert "the last checkpoint could not be written to" in said.err and "Traceback" not in said.err
    assert "validation loss" in said.out, "the figures are shown all the same"
    assert json.loads((folder / "stuck" / "summary.json").read_text())["updates"] == 2


def test_other_texts_in_the_same_files_are_another_run(folder, monkeypatch, capsys):
    texts = [f"document {number} of many, with some words in it" for number in range(400)]
    (folder / "mine.txt").write_text("\n".join(texts))
    mine = [f"data.sources={{mine: {{path: {folder / 'mine.txt'}}}}}", "run.name=mine"]
    assert train(monkeypatch, folder, *mine) == 0
    (folder / "mine.txt").write_text("\n".join(texts[:-1]))
    assert train(monkeypatch, folder, *mine, "run.resume=auto") == 2
    assert "was trained on other texts than 'mine' holds now" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_a_fault_of_the_environment(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("in the way")
    assert train(monkeypatch, tmp_path, f"run.folder={tmp_path / 'file'}") == 3
    assert "cannot be written" in capsys.readouterr().err
