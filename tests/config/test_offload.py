"""Folders of what is offloaded to files: what a JSON may say, and what a machine must have."""

from pathlib import Path

import pytest

from destruct.config.deepspeed import FrozenJSON, TrainingJSON, frozen_json, read_json, training_json
from destruct.config.offload import Offload, OffloadFolders, offload_folders
from destruct.config.settings import load
from destruct.errors import DestructError
from destruct.exits import Exit

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("offload_param", {"device": "nvme"}, ('device = "nvme" names no folder', "set nvme_path")),
        ("offload_param", {"device": "cpu", "nvme_path": "/x"}, ("nvme_path does nothing with device", 'write "nvme"')),
        (
            "offload_optimizer",
            {"device": "nvme", "nvme_path": "/x", "pin_memory": True},
            ("pin_memory does nothing for files", "leave it out"),
        ),
        ("offload_param", {"device": "nvme", "nvme_path": ""}, ("at least 1 character", "docs/config.md")),
        ("offload_param", {"device": "nvme", "nvme_path": "/x", "buffer_count": 5}, ("unknown key", "known keys")),
    ],
)
def test_a_contradiction_is_refused(files, refusal, key, value, said):
    files.change_train({f"zero_optimization.{key}": value})
    problem, remedy = refusal(read_json, files.train, TrainingJSON)
    assert said[0] in problem and said[1] in remedy, (problem, remedy)


@pytest.mark.parametrize("stage", [1, 2])
def test_only_stage_3_has_files(files, refusal, stage):
    offload = {"device": "nvme", "nvme_path": "/x"}
    files.change_train({"zero_optimization": {"stage": stage, "offload_optimizer": offload}})
    problem, remedy = refusal(read_json, files.train, TrainingJSON)
    assert f"stage {stage} has no files" in problem and remedy == 'take stage 3, or device "cpu"'


def test_deepspeeds_own_adam_has_none_either(files, refusal):
    offload = {"device": "nvme", "nvme_path": "/x"}
    files.change_train({"zero_optimization.offload_optimizer": offload, "optimizer.params.torch_adam": False})
    assert "DeepSpeed's own Adam" in refusal(read_json, files.train, TrainingJSON)[0]


def test_to_deepspeed_files_are_the_hosts_memory():
    """Its own swapper would take the word nvme, and the folder, for itself."""
    json = read_json(ROOT / "ds_configs" / "zero3_nvme.json", TrainingJSON)
    zero = training_json(json, 1, 2, 1e-3, 1.0)["zero_optimization"]
    assert zero["offload_param"] == zero["offload_optimizer"] == {"device": "cpu", "pin_memory": False}
    assert json.zero_optimization.offload_param is not None
    cpu = read_json(ROOT / "ds_configs" / "frozen_cpu_offload.json", FrozenJSON)
    filed = cpu.zero_optimization.model_copy(update={"offload_param": json.zero_optimization.offload_param})
    frozen = frozen_json(cpu.model_copy(update={"zero_optimization": filed}), json)["zero_optimization"]
    assert frozen["offload_param"] == {"device": "cpu", "pin_memory": False}
    assert json.zero_optimization.offload_param.nvme_path == "$NVME_PATH"


def test_variables_are_those_of_the_rank(tmp_path, monkeypatch):
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    folders = offload_folders(Offload(device="nvme", nvme_path="$SCRATCH"), None, Offload(device="cpu"))
    assert folders == OffloadFolders(weights=tmp_path)
    assert list(tmp_path.iterdir()) == [], "it was tried, and nothing is left of that"


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("$NOT_SET_ANYWHERE", "nvme_path = $NOT_SET_ANYWHERE is '$NOT_SET_ANYWHERE' on this machine, which is no"),
        ("$EMPTY", "nvme_path = $EMPTY is '' on this machine, which is no absolute path"),
        ("~nobody-here/x", "nvme_path = ~nobody-here/x is '~nobody-here/x' on this machine, which is no absolute path"),
        ("relative", "nvme_path = relative is 'relative' on this machine, which is no absolute path"),
        ("/a\0b", "nvme_path = /a\0b takes no files: embedded null byte"),
        ("/no/such/folder", "nvme_path = /no/such/folder takes no files: No such file or directory"),
        (__file__, f"nvme_path = {__file__} takes no files: Not a directory"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(path, problem, monkeypatch):
    monkeypatch.setenv("EMPTY", "")
    with pytest.raises(DestructError) as caught:
        offload_folders(None, Offload(device="nvme", nvme_path=path), None)
    assert caught.value.problem.startswith(problem) and caught.value.remedy
    assert caught.value.exit_code == Exit.ENVIRONMENT


def test_fsdp_refuses_files_of_the_frozen_model(files, refusal):
    files.change_frozen({"zero_optimization.offload_param": {"device": "nvme", "nvme_path": "/x"}})
    problem, remedy = refusal(load, files.yaml, ["engine.backend=fsdp"], 2)
    assert "engine.backend=fsdp cannot honour zero_optimization.offload_param.device = nvme" in problem
    assert remedy.startswith('write "cpu"')


def test_one_process_needs_no_folder(files):
    """It offloads nothing, whatever the JSON says."""
    files.change_frozen({"zero_optimization.offload_param": {"device": "nvme", "nvme_path": "/no/such"}})
    assert read_json(files.frozen, FrozenJSON).zero_optimization.offload_param is not None
    assert load(files.yaml, ["engine.backend=single"], 1).offload_folders() == OffloadFolders()
    with pytest.raises(DestructError, match="takes no files"):
        load(files.yaml, ["engine.backend=deepspeed"], 1).offload_folders()
