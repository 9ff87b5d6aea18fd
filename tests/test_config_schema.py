"""The schemas for editors and the program refuse the same."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from destruct.config.base import walk
from destruct.config.deepspeed import FrozenJSON, TrainingJSON
from destruct.config.prompts import PromptFile
from destruct.config.reading import read_yaml
from destruct.config.schema import json_schema
from destruct.config.settings import Config
from tests.json_schema import faults

ROOT = Path(__file__).resolve().parents[1]


def test_every_shipped_file_is_what_its_schema_says_and_each_yaml_names_its_schema():
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        schema = (
            path.parent / path.read_text().splitlines()[0].partition("# yaml-language-server: $schema=")[2]
        ).resolve()
        assert schema.name == ("prompts_schema.json" if path.stem == "prompts" else "schema.json")
        assert faults(read_yaml(path)[0], json.loads(schema.read_text())) == []
    for path in sorted((ROOT / "ds_configs").glob("*.json")):
        kind = "frozen" if path.stem.startswith("frozen") else "training"
        assert faults(json.loads(path.read_text()), json_schema(kind)) == []


@pytest.mark.parametrize(
    ("dotted", "value", "fault"),
    [
        ("ppo.epochz", 1, ".ppo.epochz: false"),
        ("pppo", {}, ".pppo: false"),
        ("ppo.epochs", "3", ".ppo.epochs: type"),
        ("ppo.epochs", True, ".ppo.epochs: type"),
        ("ppo.clip_range", 1, ".ppo.clip_range: exclusiveMaximum"),
        ("kl.in_loss", "k4", ".kl.in_loss: enum"),
        ("run.name", "../a", ".run.name: pattern"),
        ("reward.terms", {"eoss": 1.0}, ".reward.terms.eoss: anyOf"),
        ("data.sources.b.embedded", "pros", ".data.sources.b.embedded: anyOf"),
        ("data.sources.b", {"embedded": "prose", "path": "x"}, ".data.sources.b: oneOf"),
        ("data.sources.b", {"column": "text"}, ".data.sources.b: oneOf"),
        ("data.sources.b", {"path": "x", "format": "jsn"}, ".data.sources.b.format: oneOf"),
        ("data.sources.mean", {"path": "x"}, ".data.sources.mean: not"),
        ("data.sources", {"a.b": {"path": "x"}}, ".data.sources.a.b: false"),
    ],
)
def test_misspelt_keys_and_wrong_values_are_no_part_of_the_schema(dotted, value, fault):
    assert fault in faults(_with(COMPLETE["run"][1], dotted, value), json_schema("run"))


@pytest.mark.parametrize(
    ("dotted", "value"),
    [
        ("data.sources.b", {"path": "x", "format": "my.module:row"}),
        ("data.sources.b", {"path": "x", "embedded": None, "hub": None}),
        ("reward.terms", {"my.module:term": 1, "eos": 0.5}),
    ],
)
def test_what_is_the_users_own_is_part_of_the_schema(dotted, value):
    assert faults(_with(COMPLETE["run"][1], dotted, value), json_schema("run")) == []


def _with(document: dict[str, Any], dotted: str, value: Any) -> dict[str, Any]:
    document = copy.deepcopy(document)
    *parents, leaf = dotted.split(".")
    place = document
    for parent in parents:
        inner = place.get(parent)
        place[parent] = inner if isinstance(inner, dict | list) else {}
        place = inner[0] if isinstance(inner, list) else place[parent]
    place[leaf] = value
    return document


VALUES = [None, True, "3", "text", "", -1, 0, 1, 0.5, 1.5, 10**20, [], [0.5, 0.5], ["a"], {}, {"some": 1}]
COMPLETE = {
    "run": (Config, {"data": {"sources": {"any": {"embedded": "prose"}}}}),
    "prompts": (PromptFile, {"prompts": [{"topic": "a", "text": "b"}]}),
    "training": (TrainingJSON, json.loads((ROOT / "ds_configs" / "zero3.json").read_text())),
    "frozen": (FrozenJSON, json.loads((ROOT / "ds_configs" / "frozen_cpu_offload.json").read_text())),
}


@pytest.mark.parametrize("kind", COMPLETE)
def test_each_key_with_each_value_is_refused_by_the_schema_where_the_program_refuses_its_type_or_bounds(kind):
    """And by nothing but a check between keys or in words where the schema lets it through."""
    section, complete = COMPLETE[kind]
    schema, disagreements, refused = json_schema(kind), [], 0
    for path, _ in walk(section):
        for value in VALUES:
            document = _with(complete, path.replace("<name>", "any"), value)
            said, found = _program(section, document), faults(document, schema)
            refused += bool(found)
            if bool(found) != bool(said) and (found or said != {"value_error"}):
                disagreements.append(f"{path} = {value!r}: schema {found}, program {said}")
    assert not disagreements, "\n".join(disagreements)
    assert refused > len(VALUES) / 3


def _program(section: type, document: dict[str, Any]) -> set[str]:
    """The kinds of faults that pydantic finds."""
    try:
        section.model_validate(document)
    except ValidationError as error:
        return {fault["type"] for fault in error.errors()}
    return set()
