"""Weights & Biases by its real package: offline it holds what metrics.jsonl holds, and its failures cost nothing."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from destruct.checkup.run import weights_and_biases
from destruct.config.settings import load
from destruct.config.wandb import WandbConfig
from destruct.errors import DestructError
from destruct.exits import Exit
from destruct.loop import train
from destruct.summarizing import summarize
from destruct.tracking.facts import facts_of
from destruct.tracking.sinks import Continuation
from destruct.tracking.weights_and_biases import WeightsAndBiases, check, mode_of
from tests.tiny import tiny_run, write_config
from tests.tracking.wandb_files import curves, files, rows, runs
from tests.tracking.wandb_lives import KEY, OFFLINE, a_life, opened

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("nobody")]


def test_a_run_is_there_as_metrics_jsonl_has_it(tmp_path):
    """Every figure of every phase, in float64; the row of an update is one row, and its samples are pages."""
    with tiny_run(tmp_path, "wandb.mode=offline", "wandb.project=p", "wandb.group=g", "wandb.tags=[a, b]") as run:
        train(run)
        finals = summarize(run).finals
        run.sinks.finish(run.state.update, finals)
    wanted: dict[str, dict[str, list[tuple[int, float]]]] = {"update": {}, "warmup_step": {}}
    for line in map(json.loads, (run.folder / "metrics.jsonl").read_text().splitlines()):
        axis = "update" if line["phase"] == "ppo" else "warmup_step"
        for name in line.keys() - {"phase", "step"}:
            prefix = "warmup/" * (axis == "warmup_step" and not name.startswith("warmup/"))
            value = math.nan if line[name] is None else line[name]
            wanted[axis].setdefault(prefix + name, []).append((line["step"], value))
    pages = ("samples/", "ppo/ratio/", "ppo/advantage/", "reasons")
    for axis, names in wanted.items():
        got = curves(run.folder, axis)
        figures = {name: got[name] for name in got if not any(part in name for part in pages)}
        assert set(figures) == set(names) and len(names) > 4
        for name, curve in names.items():
            np.testing.assert_array_equal(np.array(figures[name], dtype=float), curve, err_msg=name)
    assert [step for step, _ in curves(run.folder, "update")["ppo/steps"]] == list(range(6))
    assert len([row for row in rows(run.folder) if "update" in row]) == 6, "a row each"
    (told,) = runs(run.folder)
    assert (told.project, told.run_group, list(told.tags), told.display_name) == ("p", "g", ["a", "b"], "tiny")
    config = {item.key: json.loads(item.value_json) for item in told.config.update}
    assert config["ppo"] == run.config.model_dump(mode="json")["ppo"]
    assert config["environment"] == json.loads((run.folder / "environment.json").read_text())
    samples = [*(run.folder / "wandb").rglob("samples/*.html")]
    assert samples and all("nats" in page.read_text() for page in samples)
    kept = json.loads((run.folder / "wandb.json").read_text())
    assert kept["id"] == told.run_id and kept["newest"]["ppo/steps"] == 5


def test_a_resumed_run_is_the_same_run_and_has_each_step_once(folder):
    """Five updates, then again from the second on: W&B keeps what it has, and gets the rest."""
    said: list[str] = []
    tracking = a_life(folder, said, range(5), 1.0)
    tracking.scalars("warmup", 3, {"warmup/lm_loss": 2.0})
    tracking.scalars("after_warmup", 4, {"validation/mean": 3.0})
    tracking.close()
    again = a_life(folder, said, range(2, 7), 2.0)
    again.finish(7, {"reward": 0.5})
    again.close()
    assert len({told.run_id for told in runs(folder)}) == 1 and len(files(folder)) == 2
    got = curves(folder, "update")
    assert got["ppo/steps"] == got["curriculum/round"] == [*((u, 1) for u in range(5)), (5, 2), (6, 2)]
    assert [step for step, _ in got["ppo/ratio/values"]] == list(range(7))
    assert all(counts == [3, 4] for _, counts in got["ppo/ratio/values"])
    assert [step for step, _ in got["samples/prose/path"]] == list(range(7))
    assert all(math.isnan(value) for _, value in got["kl/coef"])
    warmup = curves(folder, "warmup_step")
    assert warmup == {"warmup/lm_loss": [(3, 2.0)], "warmup/validation/mean": [(4, 3.0)]}
    assert [row["_step"] for row in rows(folder)] == list(range(9)), "numbers that W&B takes for one history"
    assert [line.partition(";")[0] for line in said] == ["W&B: offline"] * 2


def test_prompts_are_named_as_files_can_be(folder):
    tracking = opened(folder, [])
    tracking.continuation("ppo", 1, Continuation("../../out", "a/b\n../c", "d"))
    tracking.text("curriculum/reasons", "| a | b |", 1)
    tracking.close()
    pages = [path.relative_to(folder) for path in folder.rglob("*.html")]
    assert len(pages) == 2 and len([*folder.parent.rglob("*.html")]) == 2
    assert "prompts/.._.._out/a_b_.._c/path" in curves(folder, "update")


@pytest.mark.parametrize(
    ("config", "variable", "mode"),
    [
        ("disabled", "online", "disabled"),
        ("offline", None, "offline"),
        ("offline", "", "offline"),
        ("online", "offline", "offline"),
        ("online", "dryrun", "offline"),
        ("offline", "run", "online"),
        ("offline", "disabled", "disabled"),
    ],
)
def test_the_environment_may_change_the_mode_of_a_run_that_has_one(monkeypatch, config, variable, mode):
    if variable is not None:
        monkeypatch.setenv("WANDB_MODE", variable)
    assert mode_of(WandbConfig(mode=config)) == mode


def test_a_run_that_is_told_to_leave_it_leaves_no_trace(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with tiny_run(tmp_path, "wandb.mode=offline") as run:
        run.log("ppo", 0, {"kl/coef": 1.0})
    assert not [path for path in run.folder.rglob("*") if "wandb" in path.name]


def test_names_of_the_environment_count_where_the_config_gives_none(folder, monkeypatch):
    for name, value in {
        "PROJECT": "theirs",
        "NAME": "named",
        "RUN_GROUP": "many",
        "TAGS": "x,y",
        "RUN_ID": "mine1",
    }.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    tracking = opened(folder, [], WandbConfig(mode="offline", group="ours"))
    tracking.close()
    (told,) = runs(folder)
    assert (told.project, told.display_name, told.run_group, told.run_id) == ("theirs", "named", "ours", "mine1")
    assert list(told.tags) == ["x", "y"]


def refusal(config: WandbConfig) -> tuple[str, str]:
    with pytest.raises(DestructError) as caught:
        check(config)
    assert caught.value.exit_code == Exit.ENVIRONMENT
    return caught.value.problem, caught.value.remedy


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_a_package_that_is_not_there_is_told_before_anything(monkeypatch, mode):
    monkeypatch.setitem(sys.modules, "wandb", None)
    problem, remedy = refusal(WandbConfig(mode=mode))
    assert problem == f"wandb.mode={mode}, and the package wandb is not installed"
    assert remedy.startswith("pip install -e '.[wandb]'")
    assert check(WandbConfig()) == "disabled"


def test_a_run_that_goes_online_needs_a_key_and_offline_none(monkeypatch, tmp_path):
    assert check(OFFLINE) == "offline"
    problem, remedy = refusal(WandbConfig(mode="online"))
    assert "cannot be logged in to: no key for https://" in problem and remedy.startswith("`wandb login`")
    monkeypatch.setenv("WANDB_API_KEY", "too-short")
    assert "WANDB_API_KEY" in refusal(WandbConfig(mode="online"))[0]
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert check(WandbConfig(mode="online")) == "online"
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("WANDB_BASE_URL", "http://wandb.example.com")
    (tmp_path / "netrc").write_text(f"machine wandb.example.com login user password {KEY}\n")
    assert check(WandbConfig(mode="online")) == "online"


def test_a_word_that_is_no_mode_is_refused(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "onlin")
    assert refusal(OFFLINE)[0] == "WANDB_MODE='onlin' is no mode of Weights & Biases"


def test_training_without_a_key_ends_with_3_before_there_is_a_folder(tmp_path):
    command = [sys.executable, "-m", "destruct.train", "--config", str(write_config(tmp_path)), "engine.backend=single"]
    done = subprocess.run([*command, "wandb.mode=online"], capture_output=True, text=True, timeout=120)
    assert done.returncode == Exit.ENVIRONMENT and not (tmp_path / "tiny").exists()
    problem, remedy = done.stderr.splitlines()[-2:]
    assert problem.startswith("destruct: wandb.mode=online, and Weights & Biases cannot be logged in to")
    assert remedy.startswith("  remedy: `wandb login`")


def test_the_doctor_tells_the_same(tmp_path, monkeypatch):
    def found(mode: str) -> list[str]:
        settings = load(write_config(tmp_path), ["engine.backend=single", f"wandb.mode={mode}"], 1)
        return [f"{finding.name} {finding.state}" for finding in weights_and_biases(settings)]

    assert (found("disabled"), found("offline"), found("online")) == ([], ["wandb ok"], ["wandb fail"])
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert found("offline") == ["wandb fail"]
    assert [*weights_and_biases(None)] == []


def test_no_secret_and_no_command_line_is_written(folder, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("MY_SECRET", "canary-canary")
    (folder / "canary-canary").mkdir()
    settings = load(write_config(folder.parent), [f"data.cache={folder}/canary-canary", "reward.terms={eos: 1.0}"], 1)
    facts = facts_of(settings)
    tracking = WeightsAndBiases(folder, OFFLINE, "offline", facts, print)
    tracking.scalars("ppo", 0, {"kl/coef": 0.5})
    tracking.close()
    assert facts.hyper_parameters["reward.terms"] == '{"eos": 1.0}'
    written = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert b"/<secret>" in written
    for secret in (KEY.encode(), b"canary-canary", b"uploader.py"):
        assert secret not in written
