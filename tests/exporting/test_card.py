"""The model card and the folder training/: what they say is of the checkpoint that was exported, and true."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from destruct import export
from destruct.exporting.source import open_source
from tests.tiny import ROOT

pytestmark = pytest.mark.slow

STEP = "checkpoints/step-0000000"


def card_of(what: Path, to: Path, *arguments: str) -> str:
    """The card of an export."""
    assert export.main([str(what), "--to", str(to), *arguments]) == 0
    return (to / "README.md").read_text()


def cell(card: str, name: str) -> float | None:
    """The figure in a row of two cells."""
    found = re.search(rf"\| {re.escape(name)} \| (\S+) \|", card)
    return None if found is None else float(found[1])


def rewards(run: Path) -> dict[int, float]:
    """`rollout/reward` of a run's updates."""
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["rollout/reward"] for row in rows if row["phase"] == "ppo" and "rollout/reward" in row}


def edit(run: Path, change) -> None:
    """Change the values of a run's resolved.yaml."""
    values = yaml.safe_load((run / "resolved.yaml").read_text())
    change(values)
    (run / "resolved.yaml").write_text(yaml.safe_dump(values))


def test_the_card_tells_sources_settings_figures_and_what_they_hold_for(rounded, tmp_path):
    card = card_of(rounded["run"], tmp_path / "out")
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "transformers" and "base_model" not in front
    assert "| arithmetic | made by destruct: arithmetic | text | 50.0% |" in card
    assert "| ppo.policy_lr | 0.001 |" in card
    assert f" {rounded['validation']['mean']:.4f} |" in card
    assert "In bfloat16 transformers rounds logits, which the run did not" in card
    again = tmp_path / "out" / "training" / "resolved.yaml"
    assert again.read_bytes() == (rounded["run"] / "resolved.yaml").read_bytes()


def test_the_command_that_makes_it_again_makes_it(rounded, tmp_path):
    card = card_of(rounded["run"], tmp_path / "out")
    lines = re.search(r"```\n(git checkout .*\n)?(.*)\n```\n\n1 rank", card)
    program, *arguments = shlex.split(lines[2].replace("FOLDER", str(tmp_path / "out")))
    assert program == "python"
    short = ["run.updates_per_epoch=1", f"run.folder={tmp_path}"]
    done = subprocess.run([sys.executable, *arguments, *short], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert rewards(tmp_path / "tiny") == {0: rewards(rounded["run"])[0]}


def test_an_older_checkpoint_has_its_own_figures_and_no_summary_of_the_run(run, tmp_path):
    summary = {"updates": 2, "reward_before": 0.125, "reward_after": 0.25, "peak_rss_mib": 500}
    (run / "summary.json").write_text(json.dumps(summary))
    said = rewards(run)
    assert said.keys() == {0, 1} and said[0] != said[1]
    for update in (1, 2):
        card = card_of(run / f"{STEP}{update}", tmp_path / str(update))
        assert cell(card, "rollout/reward") == pytest.approx(said[update - 1], rel=1e-3)
        last = cell(card, "reward, last tenth of the updates")
        there = (tmp_path / str(update) / "training" / "summary.json").is_file()
        assert (last, there) == ((0.25, True) if update == 2 else (None, False))


def test_damaged_records_cost_their_figures_and_not_the_export(run, tmp_path):
    lines = (run / "metrics.jsonl").read_bytes().splitlines()
    (run / "metrics.jsonl").write_bytes(
        b"\n".join([*lines, b'{"phase": "ppo", "step": 1, "rollout/reward": \xff\xfe', b"[]"])
    )
    (run / "environment.json").write_text("[1]")
    (run / "summary.json").write_text('"')
    card = card_of(run, tmp_path / "out")
    assert cell(card, "rollout/reward") is not None and "It ran on" not in card
    (run / "environment.json").write_text('{"commit": 5, "packages": []}')
    assert "git checkout" not in card_of(run, tmp_path / "other")


def test_a_record_that_may_not_be_read_is_told_as_such(run, tmp_path, capsys, monkeypatch):
    read = Path.read_bytes

    def denied(self: Path) -> bytes:
        if self.name == "tokenizer_config.json":
            raise PermissionError(13, "Permission denied")
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", denied)
    assert export.main([str(run), "--to", str(tmp_path / "out")]) == 3
    assert f"{run}/tokenizer/tokenizer_config.json cannot be read: Permission denied" in capsys.readouterr().err


def test_secrets_of_the_environment_and_the_ways_to_files_are_not_in_it(run, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "hunter2-hunter2")

    def change(values: dict) -> None:
        values["run"]["name"] = "hunter2-hunter2"
        values["data"]["sources"]["noise"] = {"path": "/home/alice/corpora/noise.jsonl"}

    edit(run, change)
    card = card_of(run, tmp_path / "out")
    assert "# <secret>" in card and "files: noise.jsonl" in card
    assert "hunter2" not in card and "alice" not in card
    assert "hunter2" not in (tmp_path / "out" / "training" / "resolved.yaml").read_text()


def test_the_card_of_a_copy_says_whose_figures_it_has(rounded, tmp_path):
    words = "All of these are the policy's at this checkpoint"
    frozen = card_of(rounded["run"], tmp_path / "frozen", "--role", "frozen")
    assert words in frozen and "rounds logits" not in frozen
    assert words not in card_of(rounded["run"], tmp_path / "policy")


def test_a_checkpoint_that_was_given_up_belongs_to_its_run(run, tmp_path):
    (run / "checkpoints" / "given-up").mkdir()
    (run / f"{STEP}2").rename(run / "checkpoints" / "given-up" / "step-00000002")
    assert open_source(run / "checkpoints" / "given-up" / "step-00000002").run == run
    assert "Checkpoint step-00000002" in card_of(run / "checkpoints" / "given-up" / "step-00000002", tmp_path / "out")


def test_checkpoints_on_another_disk_belong_to_the_run_that_links_to_them(run, tmp_path):
    (run / "checkpoints").rename(tmp_path / "large")
    (run / "checkpoints").symlink_to(tmp_path / "large")
    for what in (run, run / f"{STEP}1", run / "checkpoints" / "latest"):
        assert open_source(what).run == run
