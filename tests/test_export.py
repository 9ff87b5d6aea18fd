"""`destruct export` and `destruct generate`: folders that transformers reads, from runs of one process."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from destruct import export
from destruct.errors import DestructError
from destruct.exporting.folder import export as write_folder
from destruct.exporting.source import open_source
from destruct.loop import train
from tests.exported import named, own_loss, plain_loss
from tests.tiny import ROOT, tiny_run

pytestmark = pytest.mark.slow

SHORT = ("run.num_epochs=1", "run.updates_per_epoch=2", "run.checkpoint_every=1")
FLOAT32 = {"bf16": {"enabled": False}}


def in_float32(folder: Path) -> str:
    """The override that takes a run's products to float32."""
    settings = json.loads((ROOT / "ds_configs/zero3.json").read_text()) | FLOAT32
    (folder / "float32.json").write_text(json.dumps(settings))
    return f"engine.deepspeed={folder / 'float32.json'}"


def trained(folder: Path, *overrides: str) -> dict:
    """A run of two updates: its folder, masters, weights, validation sets and what it says of them."""
    with tiny_run(folder, *SHORT, *overrides) as run:
        state = train(run)
        names = [name for name, _ in run.policy.module.named_parameters()]
        masters = dict(zip(names, (master.detach().clone() for master in run.policy.masters), strict=True))
        weights = {name: p.detach().clone() for name, p in run.policy.module.named_parameters()}
        frozen = {name: p.detach().clone() for name, p in run.frozen.module.named_parameters()}
        facts = {"masters": masters, "weights": weights, "frozen": frozen, "sets": run.inputs.validation}
        return {**facts, "run": run.folder, "validation": state.validation["after"]}


@pytest.fixture(scope="module")
def rounded(tmp_path_factory) -> dict:
    """A run in bfloat16."""
    return trained(tmp_path_factory.mktemp("rounded"))


@pytest.fixture(scope="module")
def exact(tmp_path_factory) -> dict:
    """A run in float32, its head a weight of its own."""
    folder = tmp_path_factory.mktemp("exact")
    return trained(folder, in_float32(folder), "model.policy.tie_word_embeddings=false", "kl.reference=initial")


def refused(capsys, *arguments: str) -> str:
    """What a command says that does not end well."""
    capsys.readouterr()
    assert export.main(list(arguments)) in (2, 3)
    out, err = capsys.readouterr()
    assert out == ""
    return err


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_in_float32_is_reproduced_by_plain_transformers(exact, tmp_path, capsys):
    capsys.readouterr()
    assert export.main([str(exact["run"]), "--to", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    assert (out.count("\n"), err) == (1, "") and "in float32" in out
    assert equal(named(tmp_path / "out"), exact["masters"])
    assert "lm.lm_head.weight" in exact["masters"]
    losses = plain_loss(tmp_path / "out", exact["sets"])
    assert losses == pytest.approx({name: exact["validation"][name] for name in losses}, abs=1e-5)


def test_a_run_in_bfloat16_is_exported_as_it_was_validated_and_on_demand_its_masters(rounded, tmp_path):
    """Logits that transformers rounds to bfloat16 are off by more than those of the run, whose loss takes float32."""
    assert export.main([str(rounded["run"]), "--to", str(tmp_path / "out")]) == 0
    assert equal(named(tmp_path / "out"), rounded["weights"])
    assert own_loss(tmp_path / "out", rounded["sets"]) == pytest.approx(rounded["validation"], abs=1e-6)
    losses = plain_loss(tmp_path / "out", rounded["sets"])
    assert losses == pytest.approx({name: rounded["validation"][name] for name in losses}, abs=1e-3)
    assert export.main([str(rounded["run"]), "--to", str(tmp_path / "masters"), "--dtype", "float32"]) == 0
    assert equal(named(tmp_path / "masters"), rounded["masters"])
    assert not equal(rounded["masters"], {name: p.float() for name, p in rounded["weights"].items()})


def test_shards_hold_each_weight_once_and_a_tied_one_stays_tied(rounded, tmp_path):
    assert export.main([str(rounded["run"]), "--to", str(tmp_path / "out"), "--max-shard", "20KB"]) == 0
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["weight_map"]
    assert [file.name for file in files] == sorted(set(index.values())) and len(files) > 2
    held = []
    for file in files:
        with safe_open(file, "pt") as tensors:
            held += tensors.keys()
    assert sorted(held) == sorted(index) and "lm_head.weight" not in index
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert equal(named(tmp_path / "out"), rounded["weights"])


def test_config_tokenizer_and_generation_are_those_of_the_run(rounded, tmp_path):
    assert export.main([str(rounded["run"] / "checkpoints" / "latest"), "--to", str(tmp_path / "out")]) == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    theirs = (rounded["run"] / "tokenizer" / "tokenizer.json").read_bytes()
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == theirs
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    said = model.generation_config
    assert (said.eos_token_id, said.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert (said.do_sample, said.temperature, said.top_k) == (True, 1.0, 0)
    assert (model.config.vocab_size, model.dtype) == (len(tokenizer), torch.bfloat16)


def test_the_copies_are_roles_of_their_own(exact, rounded, tmp_path, capsys):
    for name in ("frozen", "initial"):
        assert export.main([str(exact["run"]), "--to", str(tmp_path / name), "--role", name]) == 0
    assert equal(named(tmp_path / "frozen"), exact["frozen"])
    assert not equal(named(tmp_path / "initial"), exact["frozen"])
    said = refused(capsys, str(rounded["run"]), "--to", str(tmp_path / "none"), "--role", "initial")
    assert "holds no initial model" in said and not (tmp_path / "none").exists()


def test_a_folder_that_holds_something_is_refused_and_an_empty_one_is_filled(rounded, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    assert "is not empty" in refused(capsys, str(rounded["run"]), "--to", str(tmp_path / "out"))
    assert "is a file" in refused(capsys, str(rounded["run"]), "--to", str(tmp_path / "out" / "mine"))
    (tmp_path / "out" / "mine").unlink()
    assert export.main([str(rounded["run"]), "--to", str(tmp_path / "out")]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "no stage stays"


def test_an_export_that_is_ended_leaves_nothing(rounded, tmp_path):
    source = open_source(rounded["run"])
    with pytest.raises(DestructError, match="SIGTERM ended the export"), export.stoppable():
        write_folder(source, tmp_path / "out", None, "5GB", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert not list(tmp_path.iterdir())


def test_nothing_of_a_damaged_checkpoint_is_unpickled(rounded, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Path(shutil.copytree(rounded["run"], tmp_path / "run"))
    state = run / "checkpoints" / "step-00000002" / "policy" / "state.pt"
    saved = bytearray(state.read_bytes())
    saved[len(saved) // 2] ^= 1
    state.write_bytes(saved)
    said = refused(capsys, "run", "--to", "out")
    assert "its digest is another one" in said and "step-00000001" in said
    assert export.main(["run/checkpoints/step-00000001", "--to", "out"]) == 0


def test_a_checkpoint_without_its_run_and_of_another_model_is_refused(rounded, tmp_path, capsys):
    run = Path(shutil.copytree(rounded["run"], tmp_path / "run"))
    shutil.move(run / "checkpoints" / "step-00000002", tmp_path / "step-00000002")
    assert "lies in no run's folder" in refused(capsys, str(tmp_path / "step-00000002"), "--to", str(tmp_path / "out"))
    shutil.copytree(run, tmp_path / "other")
    tokenizer = tmp_path / "other" / "tokenizer" / "tokenizer.json"
    tokenizer.write_bytes(tokenizer.read_bytes() + b" ")
    said = refused(capsys, str(tmp_path / "other"), "--to", str(tmp_path / "out"))
    assert "is not the tokenizer that" in said and "into the folder of its own run" in said
    text = (run / "resolved.yaml").read_text().replace("hidden_size: 32", "hidden_size: 64")
    (run / "resolved.yaml").write_text(text)
    assert "model.policy.hidden_size = 32" in refused(capsys, str(run), "--to", str(tmp_path / "out"))
    assert "there is no run nowhere" in refused(capsys, "nowhere", "--to", str(tmp_path / "out"))
    for size in ("much", "0KB", "0.0GB", "-5GB", "0", "5", "5G", "nanGB"):
        said = refused(capsys, str(rounded["run"]), "--to", str(tmp_path / "out"), f"--max-shard={size}")
        assert said.startswith(f"destruct: --max-shard {size} is no size of a file\n")
    assert not (tmp_path / "out").exists()
