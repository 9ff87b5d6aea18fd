"""What `destruct evaluate` says where something is missing, damaged, or not what it was."""

import shutil
from pathlib import Path

import pytest
import yaml

from tests.checkpoint.test_comparing import reseal
from tests.evaluated import refused, told, trained_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict:
    """A run in float32 of two updates."""
    return trained_run(tmp_path_factory.mktemp("runs"))


def test_what_is_not_there_is_told_before_torch_is_waited_for(trained, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "there is no run nowhere" in refused(capsys, 2, "--checkpoint", "nowhere")
    assert "holds no checkpoint" in refused(capsys, 2, "--checkpoint", tmp_path / "empty")
    assert "nothing says which texts me/tiny is" in refused(capsys, 2, "--checkpoint", "me/tiny")
    run = ("--checkpoint", trained["run"])
    assert "no.yaml cannot be read" in refused(capsys, 2, *run, "--config", tmp_path / "no.yaml")
    assert "no.yaml cannot be read" in refused(capsys, 2, *run, "--prompts", tmp_path / "no.yaml")
    assert "there is no folder" in refused(capsys, 2, *run, "--json", tmp_path / "no" / "e.json")
    assert "is a folder" in refused(capsys, 2, *run, "--markdown", tmp_path)
    assert "--windows 0 is out of range" in refused(capsys, 2, *run, "--windows", "0")
    assert "would both be written to -" in refused(capsys, 2, *run, "--json", "-", "--markdown", "-")
    said = refused(capsys, 2, *run, "model.policy.hidden_size=64")
    assert "model.policy.hidden_size = 32" in said and "has 64" in said


def test_a_source_without_a_held_out_window_is_named(trained, capsys):
    said = refused(capsys, 2, "--checkpoint", trained["run"], "rollout.prompt_tokens=480")
    assert "source 'arithmetic' (held out) has" in said and "which fill 0 window(s)" in said


def test_a_damaged_checkpoint_is_named_with_an_older_one_and_other_texts_are_noted(trained, capsys, tmp_path):
    run = Path(shutil.copytree(trained["run"], tmp_path / "run"))
    state = run / "checkpoints" / "step-00000002" / "policy" / "state.pt"
    saved = bytearray(state.read_bytes())
    saved[len(saved) // 2] ^= 1
    state.write_bytes(saved)
    said = refused(capsys, 3, "--checkpoint", run)
    assert "its digest is another one" in said and "name an older one: step-00000001" in said
    resolved = yaml.safe_load((run / "resolved.yaml").read_text())
    resolved["data"]["embedded_bytes"] = 30_000
    (run / "resolved.yaml").write_text(yaml.safe_dump(resolved))
    reseal(run / "checkpoints" / "step-00000001")
    notes = told(capsys, "--checkpoint", run / "checkpoints/step-00000001", "--samples", "0")["notes"]
    assert [note.partition(":")[0] for note in notes] == ["arithmetic", "noise"]
