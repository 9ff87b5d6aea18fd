"""Sizes of networks without torch, against those of transformers' and destruct's own modules."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from destruct.config.model import LlamaShape, PolicyShape
from destruct.data.tokenizing import Tokenizer, train_tokenizer
from destruct.errors import DestructError
from destruct.models.policy import build_policy
from destruct.models.value import build_value
from destruct.planning.job import job_of
from destruct.planning.networks import KNOWN, from_config, from_shape, read_model_config
from tests.planning.planned import job

SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}
CONFIGS = [
    LlamaConfig(**SIZES, tie_word_embeddings=True),
    LlamaConfig(**SIZES, tie_word_embeddings=False, attention_bias=True, mlp_bias=True, head_dim=16),
    MistralConfig(**SIZES),
    Qwen2Config(**SIZES, tie_word_embeddings=True),
    Qwen3Config(**SIZES, head_dim=16),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_every_tensor_of_a_pretrained_model_is_counted(tmp_path, config):
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(config)
    found = from_config("model.policy.path", "x", read_model_config("model.policy.path", str(tmp_path), None), False)
    assert sorted(found.tensors) == sorted(p.numel() for p in lm.parameters())
    assert found.kv_width == lm.model.layers[0].self_attn.v_proj.out_features


@pytest.mark.parametrize("tied", [True, False])
def test_networks_from_scratch_have_the_sizes_of_those_that_are_trained(tied):
    sizes = {key: value for key, value in SIZES.items() if key != "vocab_size"}
    shape = PolicyShape(**sizes, tie_word_embeddings=tied)
    policy = build_policy(shape, 97, torch.bfloat16, 0, "chunked")
    value = build_value(LlamaShape(**sizes), 97, torch.bfloat16, 0)
    assert sorted(from_shape(shape, 97).tensors) == sorted(p.numel() for p in policy.parameters())
    assert sorted(from_shape(LlamaShape(**sizes), 97).tensors) == sorted(p.numel() for p in value.parameters())


def test_the_gated_models_that_configs_name_have_the_sizes_that_meta_published():
    """1.24 and 8.03 billion parameters."""
    sizes = {name: from_config("", name, config, scalar=False).parameters for name, config in KNOWN.items()}
    assert {round(size / 1e9, 2) for name, size in sizes.items() if "1B" in name} == {1.24}
    assert {round(size / 1e9, 2) for name, size in sizes.items() if "8B" in name} == {8.03}


def test_the_arithmetic_of_a_forward_is_what_torch_counts():
    """Eager attention lets each query see every key."""
    sizes = {key: value for key, value in SIZES.items() if key != "vocab_size"}
    shape = PolicyShape(**sizes)
    network = build_policy(shape, 97, torch.float32, 0, "chunked", attention="eager")
    tokens = torch.zeros(2, 64, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.lm(input_ids=tokens, use_cache=False)
    net = from_shape(shape, 97)
    assert tokens.numel() * (net.flops_per_token(64) + net.head_flops) == pytest.approx(
        counter.get_total_flops(), rel=0.01
    )


def test_a_value_network_from_scratch_has_the_vocabulary_of_a_pretrained_policy():
    planned = job("model.value.path=null", "model.value.hidden_size=64", config="base")
    assert planned.value.vocab == planned.policy.vocab == 128256
    assert planned.value.hidden == 64


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "has no config.json"),
        ("[]", "no JSON object"),
        ("{", "cannot be read"),
        (json.dumps({"model_type": "gpt2"}), "is a gpt2"),
        (json.dumps({}), "no stated type"),
        (json.dumps({"model_type": "llama", "num_attention_heads": 4}), "no usable vocab_size"),
    ],
)
def test_a_model_whose_sizes_cannot_be_known_is_refused(tmp_path, content, problem):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    settings = job().settings
    model = settings.config.model.model_copy(update={"policy": PolicyShape(path=str(tmp_path))})
    config = settings.config.model_copy(update={"model": model})
    object.__setattr__(settings, "config", config)
    with pytest.raises(DestructError) as caught:
        job_of(settings, job().hardware, 8)
    assert "model.policy.path" in caught.value.problem and problem in caught.value.problem


def test_a_model_that_the_hub_does_not_give_is_refused(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DestructError, match="nobody/nothing.*hub") as caught:
        read_model_config("model.policy.path", "nobody/nothing", None)
    assert caught.value.exit_code == 3


def test_a_policy_from_scratch_has_the_vocabulary_of_the_pretrained_tokenizer_it_reads(tmp_path):
    """Trained here on a few words, with a token added behind the others."""
    content = json.loads(train_tokenizer(["one two three"] * 3, 300))
    content["added_tokens"].append(
        content["added_tokens"][0] | {"id": len(content["model"]["vocab"]), "content": "<|late|>"}
    )
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    special = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|eos|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(special))
    known = Tokenizer.pretrained("data.tokenizer.path", str(tmp_path)).vocab_size
    assert job(f"data.tokenizer.path={tmp_path}").policy.vocab == known == len(content["model"]["vocab"]) + 1
