"""A run on a pretrained policy, in one process: its tokenizer, its larger vocabulary, its value network."""

import time
from pathlib import Path

import pytest
import torch
import yaml
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, OPTConfig, OPTForCausalLM

from destruct.build import build
from destruct.config.settings import load
from destruct.engine.topology import Topology
from destruct.errors import DestructError
from destruct.loop import one_update
from destruct.preparation import warm_up
from destruct.tracking.console import Screen
from tests.pretrained import write_llama, write_tokenizer
from tests.tiny import CONFIG, logging_as_before, tiny_run

SPARE = 24  # embeddings beyond the tokenizer's tokens


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    write_llama(folder, spare=SPARE)
    return folder


def started(folder: Path, model: dict, *overrides: str):
    config = CONFIG | {"run": CONFIG["run"] | {"folder": str(folder)}, "model": model}
    config["data"] = {name: value for name, value in CONFIG["data"].items() if name != "tokenizer"}
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    settings = load(folder / "run.yaml", ["engine.backend=single", "warmup.lm_updates=0", *overrides], 1)
    with logging_as_before():
        return build(settings, Topology(0, 1, torch.device("cpu")), Screen(first_rank=False), time.perf_counter())


def test_a_smaller_value_network_from_scratch_knows_every_token_that_the_policy_may_sample(tmp_path, llama):
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    run = started(tmp_path, {"policy": {"path": str(llama)}, "value": small})
    theirs = run.policy.module.lm.config.vocab_size
    assert theirs == run.tokenizer.vocab_size + SPARE
    assert run.value.module.body.get_input_embeddings().weight.shape == (theirs, 16)
    with torch.no_grad():  # so that every token is as likely as any other
        for master in run.policy.masters:
            master.zero_()
        run.policy._publish()
    warm_up(run)
    one_update(run)
    sampled = run.probe.rollouts.responses
    assert sampled.max() >= run.tokenizer.vocab_size, "32 rows of 8 tokens: some lie beyond the tokenizer's"
    assert run.state.validation["before"] == run.state.validation["after_warmup"], "nothing trained the policy between"
    assert run.state.skipped == 0
    run.sinks.close()


def test_both_keys_of_the_model_reach_both_networks(tmp_path, llama):
    model = {"policy": {"path": str(llama)}, "value": {"path": str(llama)}}
    run = started(tmp_path, model | {"attention": "eager", "activation_checkpointing": True})
    for network in (run.policy.module.lm, run.value.module.body):
        assert network.config._attn_implementation == "eager"
        assert network.is_gradient_checkpointing
    run.sinks.close()


@torch.no_grad()
def test_every_copy_of_the_policy_has_the_buffers_that_came_with_its_weights(tmp_path):
    """DeepSeek-V3 chooses experts by a bias that is no parameter; a copy without it would choose others."""
    sizes = {"hidden_size": 32, "intermediate_size": 32, "moe_intermediate_size": 16, "first_k_dense_replace": 0}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8}
    ranks = {"v_head_dim": 8, "q_lora_rank": 8, "kv_lora_rank": 8, "num_hidden_layers": 1, "n_shared_experts": 1}
    experts = {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
    vocab = write_tokenizer(tmp_path / "deepseek") + SPARE
    config = DeepseekV3Config(vocab_size=vocab, max_position_embeddings=64, **sizes, **heads, **ranks, **experts)
    lm = DeepseekV3ForCausalLM(config)
    bias = lm.model.layers[0].mlp.gate.e_score_correction_bias
    bias.copy_(torch.arange(8) / 10)
    lm.save_pretrained(tmp_path / "deepseek")
    model = {role: {"path": str(tmp_path / "deepseek")} for role in ("policy", "value")}
    run = started(tmp_path, model, "kl.reference=initial")
    run.sinks.close()
    networks = run.networks
    for network in (networks.policy.module, networks.frozen.module, networks.initial.module):
        got = network.lm.model.layers[0].mlp.gate.e_score_correction_bias
        torch.testing.assert_close(got.float(), bias, atol=2e-3, rtol=0)


def test_a_body_in_which_documents_see_each_other_is_refused_by_the_key_that_names_it(tmp_path, llama):
    """OPT reads positions off an attention mask; the policy is a Llama, which keeps documents apart."""
    vocab = write_tokenizer(tmp_path / "opt") + SPARE
    config = OPTConfig(
        hidden_size=32, ffn_dim=64, num_hidden_layers=1, num_attention_heads=2, word_embed_proj_dim=32, vocab_size=vocab
    )
    OPTForCausalLM(config).save_pretrained(tmp_path / "opt")
    with pytest.raises(DestructError, match=r"^model.value.path: OPTModel lets a document see the one before it"):
        started(tmp_path, {"policy": {"path": str(llama)}, "value": {"path": str(tmp_path / "opt")}})


def test_a_model_without_room_for_the_window_is_refused_before_its_weights_are_read(tmp_path, llama):
    (tmp_path / "llama").mkdir()
    for file in llama.iterdir():
        if not file.name.endswith(".safetensors"):
            (tmp_path / "llama" / file.name).write_bytes(file.read_bytes())
    model = {"policy": {"path": str(tmp_path / "llama")}, "value": {"path": str(tmp_path / "llama")}}
    with pytest.raises(DestructError, match=r"= 608 tokens; model.policy holds 512"):
        started(tmp_path, model, "rollout.prompt_tokens=600", "data.embedded_bytes=60000")
    assert not (tmp_path / "run").exists()


def test_a_users_function_for_whole_responses_is_refused_where_single_tokens_are_sampled(tmp_path):
    terms = ["rollout.mode=per_position", "reward.terms={'tests.tiny:one': 1.0}"]
    with (
        pytest.raises(DestructError, match="'tests.tiny:one' judges a whole response") as error,
        tiny_run(tmp_path, *terms),
    ):
        pass
    assert error.value.remedy.startswith("set one.per_token = True in its module")
