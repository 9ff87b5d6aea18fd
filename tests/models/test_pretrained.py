"""Pretrained models through the real `from_pretrained`: transformers' own arithmetic, or refused with the reason."""

import json

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    CohereConfig,
    Gemma2Config,
    Gemma3Config,
    GPT2Config,
    GraniteConfig,
    LlamaForCausalLM,
    PhiConfig,
    Qwen2Config,
)

from destruct.batch import TokenWindows
from destruct.config.model import LlamaShape, PolicyShape
from destruct.errors import DestructError
from destruct.exits import Exit
from destruct.models.policy import build_copy, build_policy, check_head, network_config
from destruct.models.pretrained import check_fit, logit_map_of
from destruct.models.value import build_value
from destruct.ops.rows import LogitMap, LossCoefficients, LossRows, PolicyLoss, ScoreRows
from tests.pretrained import write_llama

SMALL = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A folder of a tied Llama, and the model."""
    folder = tmp_path_factory.mktemp("llama")
    return folder, write_llama(folder)


def save(folder, config, **weights) -> None:
    """A model from its config, with normally distributed weights of deviation 0.3 so that its logits are no zeros."""
    torch.manual_seed(1)
    lm = AutoModelForCausalLM.from_config(config)
    for p in lm.parameters():
        torch.nn.init.normal_(p, std=0.3)
    lm.save_pretrained(folder)


def policy(folder, dtype=torch.float32, **options):
    return build_policy(PolicyShape(path=str(folder)), 0, dtype, 0, "chunked", **options)


@torch.no_grad()
def logprobs(network, tokens: torch.Tensor) -> torch.Tensor:
    windows = TokenWindows.full(tokens)
    return network(tokens, windows.rows, ScoreRows(windows.targets, torch.ones(len(windows.targets)))).logprobs


@torch.no_grad()
def expected(lm, tokens: torch.Tensor) -> torch.Tensor:
    return lm(tokens).logits[:, :-1].log_softmax(-1).gather(2, tokens[:, 1:, None]).flatten()


def test_a_folder_of_several_files_with_tied_embeddings_says_what_transformers_says(llama):
    folder, _ = llama
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    network, plain = policy(folder), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = torch.randint(0, plain.config.vocab_size, (3, 12), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(logprobs(network, tokens), expected(plain, tokens), atol=1e-5, rtol=0)
    assert network.head.weight is network.lm.get_input_embeddings().weight
    check_head(network)


def test_a_copy_holds_the_same_parameters_and_its_own_rotary_frequencies(llama):
    folder, lm = llama
    copy = build_copy(PolicyShape(path=str(folder)), 0, torch.bfloat16, "chunked")
    assert {n: (p.shape, p.dtype) for n, p in copy.lm.named_parameters()} == {
        n: (p.shape, p.dtype) for n, p in lm.named_parameters()
    }
    assert torch.equal(copy.body.rotary_emb.inv_freq, lm.model.rotary_emb.inv_freq), "and not rounded to bfloat16"


@pytest.mark.parametrize(
    "config", [GPT2Config(**SMALL), Qwen2Config(**SMALL, num_key_value_heads=2)], ids=["gpt2", "qwen2"]
)
def test_other_families_say_what_transformers_says_with_every_dropout_off(tmp_path, config):
    """GPT-2 drops a tenth of everything when it trains, unless it is told otherwise."""
    save(tmp_path, config)
    network, plain = policy(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    check_head(network)
    tokens = torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(0))
    assert network.lm.training
    torch.testing.assert_close(logprobs(network, tokens), expected(plain, tokens), atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("config", "logit_map"),
    [
        (Gemma2Config(**SMALL, head_dim=8, num_key_value_heads=2, final_logit_softcapping=3.0), LogitMap(1.0, 3.0)),
        (CohereConfig(**SMALL), LogitMap(0.0625)),
        (GraniteConfig(**SMALL, logits_scaling=8.0), LogitMap(0.125)),
    ],
    ids=["gemma2", "cohere", "granite"],
)
def test_logits_that_a_model_caps_or_scales_are_capped_and_scaled(tmp_path, config, logit_map):
    """Gradients of transformers' own cross-entropy too, of every parameter."""
    save(tmp_path, config)
    network = policy(tmp_path, attention="eager")  # as Gemma 2 asks for
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert logit_map_of(network.lm.config) == logit_map
    check_head(network)
    tokens = torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(logprobs(network, tokens), expected(plain, tokens), atol=2e-5, rtol=1e-5)
    nll = torch.nn.functional.cross_entropy(plain(tokens).logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    (1.6 * nll).backward()  # 16 tokens of weight 0.1
    got = gradients(network, tokens)
    for name, p in plain.named_parameters():
        torch.testing.assert_close(got[f"lm.{name}"], p.grad, rtol=1e-3, atol=1e-5)


def test_logits_that_are_scaled_by_no_number_are_refused_by_the_config(tmp_path):
    config = GraniteConfig(**SMALL)
    config.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text()) | {"logits_scaling": 0.0}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(DestructError, match="model.policy.path: .* computes its logits with logits_scaling=0.0"):
        network_config("model.policy", PolicyShape(path=str(tmp_path)), 0)


def test_a_head_with_a_bias_is_refused(tmp_path):
    save(tmp_path, PhiConfig(**SMALL))
    with pytest.raises(DestructError, match="the head of PhiForCausalLM has a bias"):
        policy(tmp_path)


def test_a_head_whose_arithmetic_no_config_names_is_refused_by_its_logits(llama, monkeypatch):
    """A model that doubles its logits."""
    forward = LlamaForCausalLM.forward

    def doubled(self, *args, **kwargs):
        out = forward(self, *args, **kwargs)
        out.logits = out.logits * 2
        return out

    network = policy(llama[0])
    monkeypatch.setattr(LlamaForCausalLM, "forward", doubled)
    with pytest.raises(DestructError, match="of LlamaForCausalLM are not its hidden states times its head, scaled"):
        check_head(network)


def test_a_model_that_is_no_language_model_is_refused(tmp_path):
    BertConfig(**SMALL).save_pretrained(tmp_path / "bert")
    (tmp_path / "vit").mkdir()
    (tmp_path / "vit" / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(DestructError, match=r"model.policy.path: .* is a vit, no causal language model"):
        network_config("model.policy", PolicyShape(path=str(tmp_path / "vit")), 0)


def test_a_model_of_more_than_text_is_refused(tmp_path):
    Gemma3Config().save_pretrained(tmp_path)
    with pytest.raises(DestructError, match="is a gemma3, a model of more than text"):
        network_config("model.policy", PolicyShape(path=str(tmp_path)), 0)


def test_a_body_may_belong_to_a_head_that_a_policy_could_not_have(tmp_path):
    """A value network uses no logits."""
    save(tmp_path, GraniteConfig(**SMALL, logits_scaling=-8.0))
    value = build_value(LlamaShape(path=str(tmp_path)), 0, torch.float32, 0)
    assert value(torch.randint(0, 50, (2, 7)), torch.arange(14)).shape == (14,)


def test_weights_that_are_not_there_are_named_and_not_drawn_at_random(tmp_path):
    """A classifier's folder as a policy: it has another head."""
    torch.manual_seed(0)
    classifier = AutoModelForSequenceClassification.from_config(Qwen2Config(**SMALL, num_key_value_heads=2))
    classifier.config.tie_word_embeddings = False
    classifier.save_pretrained(tmp_path)
    with pytest.raises(DestructError, match=r"model.policy.path: .* lacks 1 weight.* such as lm_head.weight"):
        policy(tmp_path)


def test_code_of_a_models_own_is_never_run(tmp_path):
    auto_map = {"AutoConfig": "config.Own", "AutoModelForCausalLM": "model.Own"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": auto_map}))
    (tmp_path / "config.py").write_text("raise SystemExit('it was run')")
    with pytest.raises(DestructError, match="model.policy.path: .* brings code of its own"):
        network_config("model.policy", PolicyShape(path=str(tmp_path)), 0)


@pytest.mark.parametrize(
    ("path", "said"),
    [("/no/such/folder", "neither a folder nor a hub id"), (".", "cannot be read: ")],
)
def test_a_path_without_a_model_is_named_with_its_key(path, said):
    with pytest.raises(DestructError, match=f"model.value.path: {path} .*{said}") as error:
        network_config("model.value", LlamaShape(path=path), 0)
    assert error.value.exit_code == Exit.CONFIG


def test_a_weights_file_cut_short_is_told_in_one_line(tmp_path):
    write_llama(tmp_path, shard="5GB")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(DestructError) as error:
        policy(tmp_path)
    assert error.value.problem.startswith(f"model.policy.path: {tmp_path} cannot be read: ")
    assert "\n" not in error.value.problem and error.value.exit_code == Exit.CONFIG


def test_flash_attention_without_its_package_is_a_fault_of_the_environment():
    with pytest.raises(DestructError, match="flash-attn is not installed") as error:
        network_config("model.policy", PolicyShape(), 50, attention="flash_attention_2")
    assert (error.value.remedy, error.value.exit_code) == ("set model.attention: sdpa", Exit.ENVIRONMENT)


def test_more_tokens_than_embeddings_or_a_longer_window_than_the_context_are_refused(llama):
    config = llama[1].config
    check_fit("model.policy", config, config.vocab_size, 512)
    with pytest.raises(DestructError, match=f"model.policy embeds {config.vocab_size} tokens, the run uses 500"):
        check_fit("model.policy", config, 500, 512)
    with pytest.raises(DestructError, match="= 513 tokens; model.policy holds 512"):
        check_fit("model.policy", config, config.vocab_size, 513)


def test_a_value_network_reads_with_a_pretrained_body_and_starts_at_zero(llama):
    folder, lm = llama
    value = build_value(LlamaShape(path=str(folder)), 0, torch.bfloat16, 0)
    theirs = lm.model.state_dict()
    assert all(torch.equal(p, theirs[name]) for name, p in value.body.state_dict().items())
    tokens = torch.randint(0, 100, (2, 7))
    assert value(tokens, torch.arange(14)).tolist() == [0.0] * 14


def gradients(network, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    windows = TokenWindows.full(tokens)
    targets, zeros = windows.targets, torch.zeros(len(windows.targets))
    nothing = LossCoefficients(clip_low=0.2, clip_high=0.2, kl_coef=0.0, kl="none", entropy_coef=0.0)
    loss_rows = LossRows(targets, zeros + 1, zeros, zeros, zeros, policy_weight=zeros, ptx_weight=zeros + 0.1)
    network(tokens, windows.rows, PolicyLoss(loss_rows, nothing)).loss.backward()
    return {name: p.grad for name, p in network.named_parameters()}


def test_activation_checkpointing_makes_the_layers_twice_and_changes_no_gradient(llama):
    tokens = torch.randint(0, 100, (2, 9), generator=torch.Generator().manual_seed(0))
    plain, saving = policy(llama[0]), policy(llama[0], checkpointing=True)
    calls = []
    for network in (plain, saving):
        network.body.layers[0].mlp.register_forward_pre_hook(lambda *_, network=network: calls.append(network))
    want, got = gradients(plain, tokens), gradients(saving, tokens)
    assert calls == [plain, saving, saving]
    for name, gradient in want.items():
        torch.testing.assert_close(got[name], gradient, atol=0, rtol=0)
