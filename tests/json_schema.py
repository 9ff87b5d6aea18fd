"""A validator of the part of JSON Schema (draft 2020-12) that our schemas use, written from its specification.

Source: https://json-schema.org/draft/2020-12/json-schema-validation
"""

import re
from collections.abc import Callable
from typing import Any

Faults = list[str]

TYPES: dict[str, Callable[[Any], bool]] = {
    "null": lambda x: x is None,
    "boolean": lambda x: isinstance(x, bool),
    "integer": lambda x: _is_number(x) and x == int(x),
    "number": lambda x: _is_number(x),
    "string": lambda x: isinstance(x, str),
    "array": lambda x: isinstance(x, list),
    "object": lambda x: isinstance(x, dict),
}

SINGLE: dict[str, Callable[[Any, Any], bool]] = {
    "const": lambda x, v: type(x) is type(v) and x == v,
    "enum": lambda x, v: any(type(x) is type(choice) and x == choice for choice in v),
    "type": lambda x, v: any(TYPES[name](x) for name in ([v] if isinstance(v, str) else v)),
    "minimum": lambda x, v: not _is_number(x) or x >= v,
    "exclusiveMinimum": lambda x, v: not _is_number(x) or x > v,
    "maximum": lambda x, v: not _is_number(x) or x <= v,
    "exclusiveMaximum": lambda x, v: not _is_number(x) or x < v,
    "minLength": lambda x, v: not isinstance(x, str) or len(x) >= v,
    "pattern": lambda x, v: not isinstance(x, str) or re.search(v, x) is not None,
    "minItems": lambda x, v: not isinstance(x, list) or len(x) >= v,
    "maxItems": lambda x, v: not isinstance(x, list) or len(x) <= v,
    "minProperties": lambda x, v: not isinstance(x, dict) or len(x) >= v,
    "required": lambda x, v: not isinstance(x, dict) or set(v) <= set(x),
}

ANNOTATIONS = {"$schema", "$defs", "title", "description", "default"}

OF_OBJECTS = {"properties", "patternProperties", "additionalProperties", "propertyNames"}

OF_ARRAYS = {"items", "prefixItems"}


def faults(value: Any, schema: Any, root: Any = None, place: str = "") -> Faults:
    """Where a value is not what a schema says, each as "place: keyword"."""
    root = schema if root is None else root
    if isinstance(schema, bool):
        return [] if schema else [f"{place}: false"]
    found = [f"{place}: {k}" for k, v in schema.items() if k in SINGLE and not SINGLE[k](value, v)]
    if "$ref" in schema:
        found += faults(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root, place)
    for keyword, good in (("anyOf", lambda n: n > 0), ("oneOf", lambda n: n == 1)):
        members = schema.get(keyword)
        if members is not None and not good(sum(not faults(value, member, root, place) for member in members)):
            found.append(f"{place}: {keyword}")
    if "not" in schema and not faults(value, schema["not"], root, place):
        found.append(f"{place}: not")
    if isinstance(value, dict):
        found += _of_object(value, schema, root, place)
    if isinstance(value, list):
        first = schema.get("prefixItems", [])
        rest = [schema.get("items", True)] * (len(value) - len(first))
        for index, (item, inner) in enumerate(zip(value, [*first, *rest], strict=False)):
            found += faults(item, inner, root, f"{place}.{index}")
    known = ANNOTATIONS | SINGLE.keys() | OF_OBJECTS | OF_ARRAYS | {"$ref", "anyOf", "oneOf", "not"}
    assert schema.keys() <= known, f"{place}: keywords that are not looked at: {schema.keys() - known}"
    return found


def _of_object(value: dict[str, Any], schema: dict[str, Any], root: Any, place: str) -> Faults:
    found: Faults = []
    for name, item in value.items():
        inner = [schema["properties"][name]] if name in schema.get("properties", {}) else []
        inner += [s for pattern, s in schema.get("patternProperties", {}).items() if re.search(pattern, name)]
        for each in inner or [schema.get("additionalProperties", True)]:
            found += faults(item, each, root, f"{place}.{name}")
        found += faults(name, schema.get("propertyNames", True), root, f"{place}.{name}")
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
