"""Sections: every fault named in one line with its remedy, and resolved.yaml that loads back."""

import copy
import random
import re
from typing import Annotated, Any

import pytest
import yaml
from pydantic import Field, TypeAdapter, ValidationError

from destruct.config.base import Section, dump_with_provenance, sections_in, validate, walk
from destruct.config.deepspeed import FrozenJSON, TrainingJSON
from destruct.config.settings import Config

SOURCES = {"data": {"sources": {"prose": {"embedded": "prose"}}}}
ROOTS = [Config, TrainingJSON, FrozenJSON]


@pytest.mark.parametrize(
    ("values", "key", "remedy"),
    [
        ({"rolout": {}}, "rolout", "did you mean 'rollout'?"),
        ({"ppo": {"epoch": 2}}, "ppo.epoch", "did you mean 'ppo.epochs'?"),
        ({"ppo": {"clip-range": 0.1}}, "ppo.clip-range", "did you mean 'ppo.clip_range'?"),
        ({"data": {"source": {}}}, "data.source", "did you mean 'data.sources'?"),
        (
            {"data": {"sources": {"path": {"embeded": "prose"}}}},
            "data.sources.path.embeded",
            "did you mean 'data.sources.path.embedded'?",
        ),
        (
            {"model": {"policy": {"hiden_size": 8}}},
            "model.policy.hiden_size",
            "did you mean 'model.policy.hidden_size'?",
        ),
        # Right name, wrong section.
        ({"epochs": 2}, "epochs", "did you mean 'ppo.epochs'?"),
        ({"rollout": {"ngram": 2}}, "rollout.ngram", "did you mean 'reward.ngram'?"),
        ({"rope_theta": 1e4}, "rope_theta", "did you mean 'model.policy.rope_theta' or 'model.value.rope_theta'?"),
        # Nothing is near.
        ({"frozen": {"zzz": 1}}, "frozen.zzz", "known keys here: refresh_every"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one_at_every_depth(refusal, values, key, remedy):
    """It comes first even where the absence of the right key is a fault too."""
    problem, got = refusal(validate, Config, values, "run.yaml")
    assert problem.startswith(f"run.yaml: unknown key '{key}'")
    assert got == remedy


@pytest.mark.parametrize(
    ("dotted", "value", "problem"),
    [
        ("ppo.epochs", True, "ppo.epochs = true should be a valid integer"),
        ("ppo.epochs", 2.0, "ppo.epochs = 2.0 should be a valid integer"),
        ("ppo.epochs", "2", 'ppo.epochs = "2" is a string, not a number'),
        ("ppo.epochs", [2], "ppo.epochs = [2] should be a valid integer"),
        ("ppo.epochs", 0, "ppo.epochs = 0 should be greater than or equal to 1"),
        ("ppo.gamma", False, "ppo.gamma = false should be a valid number"),
        ("ppo.gamma", "high", 'ppo.gamma = "high" should be a valid number'),
        ("ppo.gamma", float("nan"), "ppo.gamma = NaN should be a finite number"),
        ("ppo.gamma", 1.5, "ppo.gamma = 1.5 should be less than or equal to 1"),
        ("ppo.clip_range", 1, "ppo.clip_range = 1 should be less than 1"),
        ("ppo.clip_range", None, "ppo.clip_range = null should be a valid number"),
        ("ppo.policy_lr", -1e-6, "ppo.policy_lr = -1e-06 should be greater than 0"),
        ("ppo.max_grad_norm", -1.0, "ppo.max_grad_norm = -1.0 should be greater than 0"),
        ("kl.bound", float("inf"), "kl.bound = Infinity should be a finite number"),
        ("kl.in_reward", 1, "kl.in_reward = 1 should be a valid boolean"),
        ("kl.in_reward", "yes", 'kl.in_reward = "yes" should be a valid boolean'),
        (
            "kl.in_loss",
            False,
            "kl.in_loss = false should be 'none', 'k2', 'k3', 'k3_weighted', 'exact' or 'exact_forward'",
        ),
        ("engine.backend", "deepsped", "engine.backend = \"deepsped\" should be 'deepspeed', 'fsdp' or 'single'"),
        ("run.name", 17, "run.name = 17 should be a valid string"),
        ("ppo", 3, "ppo = 3 should be a section with keys of its own"),
        ("ppo", None, "ppo = null should be a section with keys of its own"),
        ("model.policy", [1, 2], "model.policy = [1, 2] should be a section with keys of its own"),
        ("data.sources", 3, "data.sources = 3 should be a section with keys of its own"),
        ("data.sources.prose", "x", 'data.sources.prose = "x" should be a section with keys of its own'),
        ("reward.terms", ["eos"], 'reward.terms = ["eos"] should be a section with keys of its own'),
    ],
)
def test_a_wrong_type_or_a_value_out_of_bounds_is_refused(refusal, dotted, value, problem):
    values: dict[str, Any] = copy.deepcopy(SOURCES)
    *parents, leaf = dotted.split(".")
    place = values
    for parent in parents:
        place = place.setdefault(parent, {})
    place[leaf] = value
    got, remedy = refusal(validate, Config, values, "run.yaml")
    assert got == f"run.yaml: {problem}"
    assert dotted in remedy


@pytest.mark.parametrize("name", ["a b", "a.b", "", True, 1, 1.5, None])
def test_a_source_name_that_is_no_plain_word_is_refused(refusal, name):
    values = {"data": {"sources": {"fine": {"embedded": "code"}, name: {"embedded": "prose"}}}}
    problem, _ = refusal(validate, Config, values, "run.yaml")
    assert problem.startswith("run.yaml: data.sources: the name ") and "should" in problem


def test_a_key_that_is_no_text_is_refused_in_a_section(refusal):
    problem, _ = refusal(validate, Config, {**SOURCES, "ppo": {True: 2}}, "run.yaml")
    assert problem == "run.yaml: ppo: the name true should be text"


def test_a_missing_key_is_named_with_a_complete_example(refusal):
    assert refusal(validate, Config, {}, "run.yaml") == (
        "run.yaml: 'data' is missing",
        "set it (configs/local.yaml is a complete example)",
    )


def test_of_several_faults_one_is_told_and_the_others_are_counted(refusal):
    values = {**SOURCES, "ppo": {"epochs": 0, "gamma": 2}, "kl": {"coef": -1}}
    problem, _ = refusal(validate, Config, values, "run.yaml")
    assert problem.endswith("(and 2 more)")


def test_a_fault_inside_one_member_of_a_union_is_one_fault(refusal):
    """bf16 is a section or "auto": what is wrong inside the section must not be told as two faults."""
    values = {"zero_optimization": {"stage3_param_persistence_threshold": 0}, "bf16": {"enabld": True}}
    problem, remedy = refusal(validate, FrozenJSON, values, "f.json")
    assert (problem, remedy) == ("f.json: unknown key 'bf16.enabld'", "did you mean 'bf16.enabled'?")
    problem, _ = refusal(validate, FrozenJSON, {**values, "bf16": 3}, "f.json")
    assert problem == "f.json: bf16 = 3 should be a section with keys of its own or 'auto'"


def test_the_fault_is_told_where_the_value_was_given(refusal):
    values = {**SOURCES, "ppo": {"epochs": 0}, "kl": {"coef": 0.1}}
    provenance = {"ppo.epochs": "command line", "kl.coef": "run.yaml:9", "data.sources.prose.embedded": "run.yaml:3"}
    problem, _ = refusal(validate, Config, values, "a/run.yaml", provenance)
    assert problem.startswith("command line: ppo.epochs = 0 ")
    problem, _ = refusal(validate, Config, {**values, "ppo": {}, "kl": {"coef": -1.0}}, "a/run.yaml", provenance)
    assert problem.startswith("run.yaml:9: kl.coef = -1.0 ")
    problem, _ = refusal(validate, Config, {"kl": {"coef": 0.1}}, "a/run.yaml", {"kl.coef": "run.yaml:9"})
    assert problem == "a/run.yaml: 'data' is missing"


def test_a_long_value_is_cut_in_the_message(refusal):
    problem, _ = refusal(validate, Config, {**SOURCES, "ppo": {"epochs": "x\n" * 5000}}, "run.yaml")
    assert len(problem) < 200


AWKWARD = [
    "null",
    "yes",
    "1e3",
    "017",
    "2024-01-01",
    "~",
    " a ",
    "a: b",
    "a #b",
    "#",
    "'",
    '"',
    "- x",
    "a\nb",
    "\n",
    "é\u2028😀",
]


def random_text(generator: random.Random) -> str:
    pieces = [generator.choice([*AWKWARD, "plain", "\t", "\\", "{", "]", "%", "x" * 120]) for _ in range(3)]
    return "".join(pieces)


def test_resolved_yaml_loads_back_to_the_equal_config_whatever_the_texts():
    generator = random.Random(0)
    for text in AWKWARD + [random_text(generator) for _ in range(60)]:
        config = Config.model_validate(
            {
                "data": {"sources": {"null": {"path": text, "column": text}, "1": {"embedded": "noise"}}},
                "run": {"folder": text, "seed": generator.randrange(2**63)},
                "ppo": {"policy_lr": generator.uniform(1e-9, 1e-3), "early_stop_kl": generator.uniform(0.01, 1)},
                "reward": {"terms": {"length": generator.gauss(0, 1e-8), "my.own:score": 1e16}},
            }
        )
        text = dump_with_provenance(config, {})
        assert Config(**yaml.safe_load(text)) == config
        # One line a value, or the comment would end up inside a text.
        assert all(line.endswith((":", "# default")) for line in text.split("\n")[:-1])


def test_resolved_yaml_says_of_every_value_where_it_came_from():
    config = Config.model_validate({**SOURCES, "ppo": {"epochs": 3, "gamma": 0.5}})
    provenance = {
        "data.sources.prose.embedded": "run.yaml:3",
        "ppo.epochs": "command line",
        "ppo.gamma": "run.yaml:5",
    }
    lines = dump_with_provenance(config, provenance).splitlines()
    assert [line for line in lines if not line.endswith("# default") and "#" in line] == [
        "      embedded: prose  # run.yaml:3",
        "  epochs: 3  # command line",
        "  gamma: 0.5  # run.yaml:5",
    ]
    assert all(re.search(r": .+  # |^ *\w+:$", line) for line in lines)
    assert "    stage" not in "\n".join(lines) and "  clip_range: 0.2  # default" in lines


def everywhere() -> list[tuple[str, Any]]:
    return [(f"{root.__name__}.{path}", field) for root in ROOTS for path, field in walk(root)]


def test_every_key_is_documented():
    bare = [path for path, field in everywhere() if not field.description and not list(sections_in(field.annotation))]
    assert not bare
    sections = {section for _, field in everywhere() for section in sections_in(field.annotation)}
    assert len(sections) > 20 and not [section for section in sections if not section.__doc__]


def bad_defaults(fields: list[tuple[str, Any]]) -> list[str]:
    """Keys whose default their own type and bounds refuse: pydantic does not look."""
    bad = []
    for path, field in fields:
        if field.is_required():
            continue
        kind = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        try:
            TypeAdapter(kind).validate_python(field.get_default(call_default_factory=True), strict=True)
        except ValidationError:
            bad.append(path)
    return bad


def test_every_default_lies_inside_its_own_bounds():
    assert not bad_defaults(everywhere())


def test_a_default_outside_its_bounds_is_caught():
    class Wrong(Section):
        fine: float = Field(0.5, ge=0, lt=1)
        high: float = Field(1.0, ge=0, lt=1)
        kind: int | None = Field("1")
        unset: int = Field(ge=1)

    assert bad_defaults(list(walk(Wrong))) == ["high", "kind"]


def test_sections_cannot_be_changed():
    with pytest.raises(ValidationError):
        Config.model_validate(SOURCES).ppo.epochs = 3
