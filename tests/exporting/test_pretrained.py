"""The export of a pretrained policy: the config that its run began with, and the sampling of its rollouts."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from destruct import export
from tests.exported import named
from tests.pretrained import BOS, write_llama
from tests.test_export import equal, refused
from tests.test_pretrained_run import started

pytestmark = pytest.mark.slow

AUTHORS = {
    "do_sample": False,
    "repetition_penalty": 1.3,
    "min_p": 0.05,
    "typical_p": 0.5,
    "top_k": 20,
    "top_p": 0.8,
    "temperature": 0.6,
    "eos_token_id": [9, 7],
    "max_new_tokens": 4,
}


@pytest.fixture
def tuned(tmp_path) -> Path:
    """A run of a pretrained policy, saved before its first update; the model lies beside it."""
    write_llama(tmp_path / "llama", attention_dropout=0.1)
    (tmp_path / "llama" / "generation_config.json").write_text(json.dumps(AUTHORS))
    shape = {"policy": {"path": str(tmp_path / "llama")}, "value": {"num_hidden_layers": 1}}
    run = started(tmp_path, shape, "rollout.temperature=0.7")
    run.save()
    run.close()
    return run.folder


def changes(folder: Path, **values) -> None:
    """Change keys of a model's config.json."""
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | values))


def test_it_keeps_its_config_its_tokenizer_and_its_weights_and_tells_no_way_to_them(tuned, tmp_path):
    assert export.main([str(tuned), "--to", str(tmp_path / "out")]) == 0
    before, after = (AutoConfig.from_pretrained(tmp_path / name).to_dict() for name in ("llama", "out"))
    assert {key for key in before if before[key] != after[key]} <= {"attention_dropout", "_name_or_path"}
    assert equal(named(tmp_path / "out"), named(tmp_path / "llama"))
    assert AutoTokenizer.from_pretrained(tmp_path / "out").bos_token == BOS
    card = (tmp_path / "out" / "README.md").read_text()
    assert "from llama:" in card and str(tmp_path) not in card
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        assert str(tmp_path) not in (tmp_path / "out" / name).read_text()


def test_it_is_sampled_as_rollouts_were_and_not_as_its_author_did(tuned, tmp_path):
    assert export.main([str(tuned), "--to", str(tmp_path / "out")]) == 0
    own = AutoTokenizer.from_pretrained(tmp_path / "out").eos_token_id
    said = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert said.pop("eos_token_id") == sorted({own, 7, 9})
    for name in ("transformers_version", "bos_token_id", "pad_token_id"):
        del said[name]
    assert said == {"do_sample": True, "temperature": 0.7, "top_k": 0, "top_p": 1.0}


def test_what_became_of_the_model_since_the_run_began_changes_nothing(tuned, tmp_path):
    assert export.main([str(tuned), "--to", str(tmp_path / "before")]) == 0
    changes(tmp_path / "llama", rope_parameters={"rope_type": "default", "rope_theta": 77.0}, eos_token_id=1)
    (tmp_path / "llama" / "generation_config.json").unlink()
    assert export.main([str(tuned), "--to", str(tmp_path / "after")]) == 0
    shutil.rmtree(tmp_path / "llama")
    assert export.main([str(tuned), "--to", str(tmp_path / "gone")]) == 0
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        assert len({(tmp_path / to / name).read_bytes() for to in ("before", "after", "gone")}) == 1


def test_a_run_that_kept_no_config_takes_that_of_its_model_and_says_what_is_missing(tuned, tmp_path, capsys):
    shutil.rmtree(tuned / "policy")
    assert export.main([str(tuned), "--to", str(tmp_path / "out")]) == 0
    assert 7 in GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id
    shutil.rmtree(tmp_path / "llama")
    said = refused(capsys, str(tuned), "--to", str(tmp_path / "gone"))
    assert said.startswith("destruct: model.policy.path: ") and "kept no config of it" in said
    assert "put back the model that the run began with" in said


def test_a_model_without_a_generation_config_ends_with_the_eos_of_its_config_and_of_the_run(tmp_path):
    write_llama(tmp_path / "llama")
    (tmp_path / "llama" / "generation_config.json").unlink(missing_ok=True)
    changes(tmp_path / "llama", eos_token_id=11)
    run = started(tmp_path, {"policy": {"path": str(tmp_path / "llama")}, "value": {"num_hidden_layers": 1}})
    run.save()
    run.close()
    assert export.main([str(run.folder), "--to", str(tmp_path / "out")]) == 0
    own = AutoTokenizer.from_pretrained(tmp_path / "out").eos_token_id
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == sorted({own, 11})
