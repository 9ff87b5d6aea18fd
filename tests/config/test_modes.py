"""Keys that must fit together: mode and rewards, pretrained models and shapes, the reward model, stop strings."""

import pytest
import yaml

from destruct.config.base import dump_with_provenance

PER_POSITION = ["rollout.mode=per_position", "reward.terms={match: 1.0}"]


def test_gamma_is_0_where_no_action_follows_another(files):
    assert files.load().config.gamma == 1.0
    assert files.load("ppo.gamma=0.9").config.gamma == 0.9
    assert files.load(*PER_POSITION).config.gamma == 0.0
    assert files.load(*PER_POSITION, "ppo.gamma=0").config.gamma == 0.0


@pytest.mark.parametrize(
    ("overrides", "problem", "remedy"),
    [
        (
            ["rollout.mode=per_position"],
            "the reward term repetition judges a whole response, and rollout.mode=per_position samples single tokens",
            "take match, frozen_likelihood or a module:function that is per token",
        ),
        (
            ["reward.terms={match: 1.0}"],
            "the reward term match compares with the text at the same place, and generated text has left it",
            "take continuation_overlap, or rollout.mode: per_position",
        ),
        (
            [*PER_POSITION, "ppo.gamma=0.9"],
            "ppo.gamma=0.9 in rollout.mode=per_position, where no action follows another",
            "set ppo.gamma to 0, or leave it out",
        ),
        (
            [*PER_POSITION, "rollout.stop=[end]"],
            "stop ends nothing in mode=per_position, which samples no text",
            "leave one of them out",
        ),
        (["rollout.stop=['']"], "stop holds an empty text, which would end every response", "leave it out"),
        (
            ["reward.terms={reward_model: 1.0}"],
            "the term reward_model has no model",
            "set reward.model.path",
        ),
        (
            ["reward.model.path=some/model"],
            "model.path=some/model scores nothing",
            "add the term reward_model, or leave it out",
        ),
        (
            ["model.value={path: a/b, hidden_size: 64}"],
            "path=a/b has a shape of its own, and hidden_size is given",
            "leave one of them out",
        ),
        (
            ["model.value={revision: main}"],
            "revision is that of a path, and none is given",
            "give path, or leave revision out",
        ),
        (
            ["model.policy={path: a/b}", "data.tokenizer={vocab_size: 300}"],
            "data.tokenizer.vocab_size=300 is for a tokenizer that is trained, and model.policy.path brings its own",
            "leave vocab_size out",
        ),
        (
            ["data.tokenizer={path: a/b, vocab_size: 300}"],
            "path=a/b has a vocabulary of its own",
            "leave vocab_size or path out",
        ),
    ],
)
def test_keys_that_do_not_fit_together_are_refused(files, refusal, overrides, problem, remedy):
    """The whole-section overrides stand in a file, as on the command line they are refused as such."""
    sections = [override for override in overrides if "={" in override and not override.startswith("reward.terms")]
    rest = [override for override in overrides if override not in sections]
    document = yaml.safe_load(files.yaml.read_text())
    for section in sections:
        dotted, _, text = section.partition("=")
        first, second = dotted.split(".")
        document.setdefault(first, {})[second] = yaml.safe_load(text)
    files.yaml.write_text(yaml.safe_dump(document))
    got_problem, got_remedy = refusal(files.load, *rest)
    assert problem in got_problem
    assert got_remedy == remedy


def test_flash_attention_in_float32_is_refused(files, refusal):
    files.load("model.attention=flash_attention_2")
    files.change_train({"bf16.enabled": False})
    problem, _ = refusal(files.load, "model.attention=flash_attention_2")
    assert problem.startswith("model.attention=flash_attention_2 computes in bfloat16, and ")


def test_a_pretrained_models_context_is_its_own(files):
    """The shipped context of 64 tokens is that of a Llama from scratch."""
    document = yaml.safe_load(files.yaml.read_text())
    document["model"] = {"policy": {"path": "a/b"}, "value": {"path": "a/b"}}
    files.yaml.write_text(yaml.safe_dump(document))
    assert files.load("rollout.prompt_tokens=4000").config.window_tokens == 4008


@pytest.mark.parametrize("pretrained", [True, False])
def test_a_resolved_file_with_every_default_in_it_loads_back(files, tmp_path, pretrained):
    document = yaml.safe_load(files.yaml.read_text())
    if pretrained:
        document["model"] = {"policy": {"path": "a/b", "revision": "main"}, "value": {"path": "a/b"}}
        document["data"]["tokenizer"] = {"path": "c/d"}
    files.yaml.write_text(yaml.safe_dump(document))
    config = files.load(*PER_POSITION).config
    files.yaml.write_text(dump_with_provenance(config, {}))
    assert files.load().config == config
