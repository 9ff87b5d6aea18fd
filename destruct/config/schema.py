"""JSON schemas (draft 2020-12) of the files that people write, for completion and checks in their editors.

A schema knows keys, types, bounds and choices; what holds between keys is told by `destruct config show`.
"""

import json
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from destruct.config.base import Section
from destruct.config.deepspeed import FrozenJSON, TrainingJSON
from destruct.config.prompts import PromptFile
from destruct.config.settings import Config
from destruct.config.words import sentence


class _Untitled(GenerateJsonSchema):
    """Without titles that are keys written otherwise, which editors would show in place of the keys."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


DIALECT = "https://json-schema.org/draft/2020-12/schema"

FP16 = {
    "description": "Not supported: a block that only says it is off is let through.",
    "type": ["object", "null"],
    "properties": {"enabled": {"const": False}},
}
"""What `read_json` takes out of a DeepSpeed JSON before anything else."""

KINDS: dict[str, tuple[type[Section], str]] = {
    "run": (Config, "destruct: the YAML of a run"),
    "prompts": (PromptFile, "destruct: the YAML of prompts"),
    "training": (TrainingJSON, "destruct: the DeepSpeed JSON of the training engines"),
    "frozen": (FrozenJSON, "destruct: the DeepSpeed JSON of the frozen engine"),
}
"""Kind of file -> what it holds, and the title of its schema."""


def json_schema(kind: str) -> dict[str, Any]:
    """The schema of a kind of file, one of KINDS."""
    section, title = KINDS[kind]
    schema = _plain(section.model_json_schema(schema_generator=_Untitled))
    for block in (schema, *schema["$defs"].values()):
        del block["title"]  # the name of a class
    if kind in ("training", "frozen"):
        schema["properties"]["fp16"] = FP16
    return {"$schema": DIALECT, "title": title, **schema}


def schema_text(kind: str) -> str:
    """That schema as a file."""
    return json.dumps(json_schema(kind), indent=1, ensure_ascii=False) + "\n"


def _plain(node: Any) -> Any:
    """A schema as editors show it best: docstrings in one line, no defaults of sections, whose keys have their own;
    where names have a pattern, others are refused."""
    if isinstance(node, list):
        return [_plain(item) for item in node]
    if not isinstance(node, dict):
        return node
    kept = {key: _plain(item) for key, item in node.items()}
    if isinstance(kept.get("description"), str):
        kept["description"] = sentence(kept["description"])
    if "$ref" in kept:
        kept.pop("default", None)
    if "patternProperties" in kept:
        kept["additionalProperties"] = False
    return kept
