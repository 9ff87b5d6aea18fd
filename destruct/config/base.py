"""Frozen, typed sections: errors that name the nearest known key, and YAML that says where each value came from."""

import difflib
import json
import math
import re
import typing
from collections.abc import Iterator
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from destruct.errors import DestructError

SectionT = TypeVar("SectionT", bound="Section")
Place = tuple[int | str, ...]  # keys and list indices that lead to a value
COMMAND_LINE = "command line"
"""Where an override was given, as `provenance` says it."""


class Section(BaseModel):
    """One block of a file.  Unknown keys are refused, and so is `true` or `"3"` for a number.

    Each field's docstring is its documentation.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    def changed(self, *names: str) -> list[str]:
        """Those of the keys whose value is not the default.

        Validators ask for these and not for `model_fields_set`: resolved.yaml states every default, and loads back.
        """
        fields = type(self).model_fields
        return [n for n in names if getattr(self, n) != fields[n].get_default(call_default_factory=True)]


def walk(section: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Dotted path and field of every key, a section before what it holds; `<name>` is a key that the user chooses."""
    for name, field in section.model_fields.items():
        path = f"{prefix}{name}"
        yield path, field
        chosen = ".<name>" if typing.get_origin(field.annotation) is dict else ""
        for inner in sections_in(field.annotation):
            yield from walk(inner, f"{path}{chosen}.")


def sections_in(annotation: Any) -> Iterator[type[Section]]:
    """The sections that a field's type names, e.g. one for `dict[str, SourceConfig]`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from sections_in(argument)


def validate(
    section: type[SectionT],
    values: dict[str, Any],
    where: str,
    provenance: dict[str, str] | None = None,
    example: str = "configs/local.yaml",
) -> SectionT:
    """Validate `values` as `section`.

    Args:
        section: what the values should be.
        values: the nested mapping.
        where: the file, for errors at a place that `provenance` does not know.
        provenance: dotted key of each leaf -> where it was given.
        example: a complete file, for the remedy of a missing key.

    Raises:
        DestructError: with the first fault (and the number of further ones) in one line.
    """
    try:
        return section.model_validate(values)
    except ValidationError as error:
        faults = _by_place(error.errors(), values)
        # A misspelt key first: the fault beside it is often that the right one is missing.
        place = next((place for place in faults if faults[place][0]["type"] == "extra_forbidden"), next(iter(faults)))
        dotted = ".".join(map(str, place))
        known = provenance or {}
        origins = {origin for key, origin in known.items() if key == dotted or key.startswith(f"{dotted}.")}
        origin = origins.pop() if len(origins) == 1 else where
        problem, remedy = _explain(section, place, faults[place], example, origin == COMMAND_LINE)
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise DestructError(f"{origin}: {problem}{more}", remedy) from None


def _by_place(faults: list[ErrorDetails], values: dict[str, Any]) -> dict[Place, list[ErrorDetails]]:
    """Faults by where they lie in `values`: pydantic reports each member of a union by itself, under a made-up name."""
    grouped: dict[Place, list[ErrorDetails]] = {}
    for fault in faults:
        place: Place = ()
        here: Any = values
        for part in fault["loc"]:
            inside = dict(enumerate(here)) if isinstance(here, list) else here if isinstance(here, dict) else {}
            if part in inside:
                place, here = (*place, part), inside[part]
        if fault["type"] == "missing":
            place = (*place, fault["loc"][-1])
        grouped.setdefault(place, []).append(fault)
    # A fault inside a section is also a fault of the whole, by the union's other members.
    inner = {place[:length] for place in grouped for length in range(len(place))}
    return {place: group for place, group in grouped.items() if place not in inner}


def _explain(
    section: type[Section], place: Place, faults: list[ErrorDetails], example: str, typed: bool
) -> tuple[str, str]:
    """Problem and remedy of the faults of one place, one line each.

    Args:
        typed: the value was given on the command line, where a shell takes one pair of quotes away.
    """
    dotted = ".".join(map(str, place))
    kinds, given = {fault["type"] for fault in faults}, faults[0]["input"]
    if "extra_forbidden" in kinds:
        return f"unknown key {dotted!r}", _nearest(section, place)
    if "missing" in kinds:
        return f"{dotted!r} is missing", f"set it ({example} is a complete example)"
    message = " or ".join(_message(fault) for fault in faults).replace(" or should be ", " or ")
    if "value_error" in kinds:
        # Our own validators write "problem; remedy".
        problem, _, remedy = message.partition("; ")
        return f"{dotted}: {problem}".removeprefix(": "), remedy or f"change {dotted or 'one of the keys named'}"
    if "invalid_key" in kinds or faults[0]["loc"][-1] == "[key]":
        path = [str(part) for part in faults[0]["loc"] if part != "[key]"][:-1]
        message = message.replace("be strings", "be text").replace("be a valid string", "be text")
        remedy = "rename it; quotes turn a number or a yes into text"
        return f"{'.'.join(path) or 'top level'}: the name {_shown(given)} {message}", remedy
    if kinds & {"int_type", "float_type"} and _is_number(given):
        remedy = f"write {dotted}={given}" if typed else f"write {dotted}: {given}"
        return f"{dotted} = {_shown(given)} is a string, not a number", remedy
    if "string_type" in kinds and given is not None and not isinstance(given, dict | list):
        text = _shown(str(given))
        remedy = f"put it in two pairs of quotes: '{dotted}={text}'" if typed else f"put it in quotes: {dotted}: {text}"
        return f"{dotted} = {_shown(given)} {message}", remedy
    if kinds == {"model_type"}:
        return f"{dotted} = {_shown(given)} {message}", f"write keys below {dotted}, as in {example}, or leave it out"
    return f"{dotted} = {_shown(given)} {message}", f"change {dotted} (docs/config.md says what it takes)"


def _message(fault: ErrorDetails) -> str:
    if fault["type"] in ("model_type", "dict_type"):
        return "should be a section with keys of its own"
    message = fault["msg"].removeprefix("Value error, ").replace(" after validation", "")
    return re.sub(r"^(Input|String|Dictionary|Tuple|Keys) should", "should", message)


def _shown(value: Any) -> str:
    """A value as YAML and JSON write it, in at most 80 characters."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, str) and math.isfinite(float(value))
    except ValueError:
        return False


def _nearest(section: type[Section], place: Place) -> str:
    """Remedy for an unknown key: the nearest name in its own section, else its namesakes elsewhere."""
    here: type[Section] = section
    for part in place[:-1]:  # keys that the user chose lead nowhere: their section is the dictionary's
        field = here.model_fields.get(str(part))
        here = next(sections_in(field.annotation), here) if field else here
    name, known = str(place[-1]), sorted(here.model_fields)
    parents = [str(part) for part in place[:-1]]
    near = [".".join([*parents, key]) for key in difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.6)]
    near = near or [path for path, _ in walk(section) if path.rpartition(".")[2] == name]
    return f"did you mean {' or '.join(map(repr, near))}?" if near else f"known keys here: {', '.join(known)}"


def dump_with_provenance(config: Section, provenance: dict[str, str]) -> str:
    """YAML of every value, defaults included, each line saying where the value came from."""
    lines: list[str] = []
    _dump(config.model_dump(mode="json"), "", 0, provenance, lines)
    return "\n".join(lines) + "\n"


def _dump(value: dict[str, Any], prefix: str, depth: int, provenance: dict[str, str], lines: list[str]) -> None:
    for key, item in value.items():
        dotted = f"{prefix}.{key}" if prefix else key
        indent = "  " * depth
        if isinstance(item, dict) and item:
            lines.append(f"{indent}{scalar(key)}:")
            _dump(item, dotted, depth + 1, provenance, lines)
        else:
            lines.append(f"{indent}{scalar(key)}: {scalar(item)}  # {provenance.get(dotted, 'default')}")


def leaves(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value; an empty mapping is a value."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            found |= leaves(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def scalar(value: Any) -> str:
    """A value as YAML of one line."""
    quotes = '"' if isinstance(value, str) and "\n" in value else None
    text = yaml.safe_dump(value, default_flow_style=True, default_style=quotes, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")
