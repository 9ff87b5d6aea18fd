"""Reading YAML into frozen, typed sections: overrides, provenance, and errors that name the nearest known key."""

import difflib
import re
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from destruct.errors import DestructError

SectionT = TypeVar("SectionT", bound="Section")


class Section(BaseModel):
    """One block of the YAML file.  Unknown keys are refused; each field's docstring is its documentation."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class _Loader(yaml.SafeLoader):
    """YAML 1.1, except that `1e-3` is the number that everyone means by it and not a string."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    # PyYAML wants a dot in the mantissa and a sign in the exponent; neither is needed here.
    re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Read a YAML mapping.

    Returns:
        values: the nested mapping.
        provenance: dotted key of each leaf -> "file:line".

    Raises:
        DestructError: the file is missing, is not YAML, or is not a mapping.
    """
    if not path.is_file():
        raise DestructError(f"config file {path} does not exist", "give --config an existing YAML file")
    text = path.read_text(encoding="utf-8")
    try:
        node = yaml.compose(text, Loader=_Loader)
        values = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise DestructError(f"{path}{line} is not YAML: {getattr(error, 'problem', error)}", "mend the line") from None
    if not isinstance(values, dict):
        raise DestructError(f"{path} is not a mapping of sections", "start from configs/local.yaml")
    return values, dict(_leaves(node, "", path.name))


def _leaves(node: yaml.Node | None, prefix: str, file: str) -> typing.Iterator[tuple[str, str]]:
    if not isinstance(node, yaml.MappingNode) or not node.value:
        yield prefix, f"{file}:{node.start_mark.line + 1}" if node else file
        return
    for key, value in node.value:
        yield from _leaves(value, f"{prefix}.{key.value}" if prefix else str(key.value), file)


def apply_overrides(values: dict[str, Any], provenance: dict[str, str], overrides: list[str]) -> None:
    """Write each `key.sub=value` of the command line into `values` (in place); the value is read as YAML.

    Raises:
        DestructError: an override has no "=", or descends into something that is not a section.
    """
    for override in overrides:
        dotted, equals, raw = override.partition("=")
        if not equals or not dotted:
            raise DestructError(f"override {override!r} is not of the form key.sub=value", "write e.g. ppo.epochs=2")
        *parents, leaf = dotted.split(".")
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise DestructError(f"override {override!r}: {parent} is not a section", "name a key inside a section")
        place[leaf] = yaml.load(raw, Loader=_Loader)
        stale = [key for key in provenance if key == dotted or key.startswith(dotted + ".")]
        for key in stale:
            del provenance[key]
        provenance[dotted] = "command line"


def validate(section: type[SectionT], values: dict[str, Any], where: str) -> SectionT:
    """Validate `values` as `section`; `where` names the file in errors.

    Raises:
        DestructError: with the first fault (and the number of further ones) in one line.
    """
    try:
        return section.model_validate(values)
    except ValidationError as error:
        faults = error.errors()
        problem, remedy = _explain(section, faults[0])
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise DestructError(f"{where}: {problem}{more}", remedy) from None


def _explain(section: type[Section], fault: ErrorDetails) -> tuple[str, str]:
    dotted = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        known = sorted(_fields_at(section, fault["loc"][:-1]))
        name = str(fault["loc"][-1])
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        remedy = f"did you mean {near[0]!r}?" if near else f"known keys here: {', '.join(known)}"
        return f"unknown key {dotted!r}", remedy
    if fault["type"] == "missing":
        return f"{dotted!r} is missing", "set it (configs/local.yaml is a complete example)"
    message = fault["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if fault["type"] == "value_error":
        return f"{dotted or 'config'}: {message}", f"change {dotted or 'one of the keys named'}"
    return f"{dotted} = {fault['input']!r}: {message}", f"change {dotted}"


def _fields_at(section: type[Section], location: tuple[int | str, ...]) -> set[str]:
    """The keys known to the section that `location` leads to (dictionary keys and union tags are passed over)."""
    here: Any = section
    for part in location:
        models = list(_models_in(here.model_fields[part].annotation)) if part in here.model_fields else []
        here = models[0] if models else here
    return set(here.model_fields)


def _models_in(annotation: Any) -> typing.Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models_in(argument)


def dump_with_provenance(config: Section, provenance: dict[str, str]) -> str:
    """YAML of every value, defaults included, each line saying where the value came from."""
    lines: list[str] = []
    _dump(config.model_dump(mode="json"), "", 0, provenance, lines)
    return "\n".join(lines) + "\n"


def _dump(value: dict[str, Any], prefix: str, depth: int, provenance: dict[str, str], lines: list[str]) -> None:
    for key, item in value.items():
        dotted = f"{prefix}.{key}" if prefix else key
        indent = "  " * depth
        name = yaml.safe_dump(key).splitlines()[0]
        if isinstance(item, dict) and item:
            lines.append(f"{indent}{name}:")
            _dump(item, dotted, depth + 1, provenance, lines)
        else:
            text = yaml.safe_dump(item, default_flow_style=True, width=10**6).splitlines()[0]
            lines.append(f"{indent}{name}: {text}  # {provenance.get(dotted, 'default')}")
