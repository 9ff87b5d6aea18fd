"""A key in words: its type, its default, the values it takes and what it means, as docs/config.md has them."""

import itertools
import json
from typing import Any

from pydantic.fields import FieldInfo

from destruct.config.base import Section, sections_in

TYPES = {"integer": "int", "number": "float", "boolean": "bool", "string": "text"}

SYMBOLS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def type_of(schema: dict[str, Any]) -> str:
    """The type of a JSON schema, in words."""
    if "anyOf" in schema:
        return " or ".join(type_of(member) for member in schema["anyOf"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return "choice"
    if "prefixItems" in schema:
        return f"{len(schema['prefixItems'])} x {type_of(schema['prefixItems'][0])}"
    if "additionalProperties" in schema or "patternProperties" in schema:
        named = schema.get("additionalProperties") or next(iter(schema["patternProperties"].values()))
        return f"name: {type_of(named)}"
    return TYPES.get(schema.get("type", "section"), schema.get("type", "section"))


def bounds_of(schema: dict[str, Any]) -> list[str]:
    """The values that a JSON schema lets through, each once."""
    inner = itertools.chain(schema.get("anyOf", []), schema.get("prefixItems", []))
    bounds = [bound for member in inner for bound in bounds_of(member)]
    limits = [f"{symbol} {figure(schema[key])}" for key, symbol in SYMBOLS.items() if key in schema]
    bounds += [str(schema["minimum"])] if "minimum" in schema and schema["minimum"] == schema.get("maximum") else limits
    bounds += [f"`{choice}`" for choice in schema.get("enum", [])]
    if schema.get("minLength") or schema.get("minProperties"):
        bounds.append("not empty")
    if "pattern" in schema:
        bounds.append(f"`{schema['pattern']}`")
    return list(dict.fromkeys(bounds))


def figure(bound: float) -> str:
    """A bound as one writes it: 2**63 and not nineteen digits."""
    exponent = int(bound).bit_length() - 1
    return f"2**{exponent}" if bound == 2**exponent and exponent > 16 else str(bound)


def default_of(field: FieldInfo) -> str:
    """The default of a key as YAML and JSON write it, in backticks; nothing for a section: its keys have their own."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "" if isinstance(value, Section) else f"`{json.dumps(value)}`"


def meaning_of(field: FieldInfo) -> str:
    """The docstring of a key, or of the section that it holds, in one line."""
    return sentence(field.description or next(sections_in(field.annotation)).__doc__)


def sentence(text: str | None) -> str:
    """A docstring in one line."""
    return " ".join((text or "").split())
