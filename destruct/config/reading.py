"""Reading YAML and overrides into nested mappings that know where each value came from."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError

from destruct.config.base import COMMAND_LINE
from destruct.errors import DestructError


class _Loader(yaml.SafeLoader):
    """YAML 1.1, but `1e-3` is a number and a date is text, as everyone means them, and no key appears twice."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in lines:
                problem = f"the key {key.value!r} is set in line {lines[key.value]} already"
                raise ComposerError(None, None, problem, key.start_mark)
            lines[key.value] = key.start_mark.line + 1
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    # PyYAML wants a dot in the mantissa and a sign in the exponent; neither is needed here.
    re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def read_text(path: Path) -> str:
    """The text of a file that a person named.

    Raises:
        DestructError: it is missing, unreadable, or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DestructError(f"{path} cannot be read: {error.strerror}", "name a file that exists") from None
    except UnicodeDecodeError as error:
        raise DestructError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}", "convert it") from None


def find_beside(name: str, beside: Path, key: str) -> Path:
    """The file that a key of the YAML `beside` names, from here, from its folder or from the one above.

    Raises:
        DestructError: there is none.
    """
    candidates = [Path(name), beside.parent / name, beside.parent.parent / name]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise DestructError(
        f"{key}: {name} exists neither in {Path.cwd()} nor beside {beside}", f"give {key} the path of a file"
    )


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Read a YAML mapping.

    Returns:
        values: the nested mapping.
        provenance: dotted key of each leaf -> "file:line".

    Raises:
        DestructError: the file is missing, is not YAML, or is not a mapping.
    """
    values, node = _parse(read_text(path), str(path))
    if not isinstance(values, dict):
        raise DestructError(f"{path} is not a mapping of sections", "start from configs/local.yaml")
    return values, dict(_lines(node, "", path.name))


def _parse(text: str, where: str) -> tuple[Any, yaml.Node | None]:
    """The value of a YAML text and its tree, in which merges (`<<`) are resolved."""
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return (None if node is None else _unshared(loader.construct_document(node))), node
    # ValueError: PyYAML's own resolvers let numbers such as 0b_ through to int().
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise DestructError(f"{where}{line} is not YAML: {problem}", "fix the line") from None
    finally:
        if loader is not None:
            loader.dispose()


def _unshared(value: Any) -> Any:
    """A copy in which an alias (`*name`) and its anchor are two mappings, so that an override changes one."""
    return {key: _unshared(item) for key, item in value.items()} if isinstance(value, dict) else value


def _lines(node: yaml.Node | None, prefix: str, file: str) -> Iterator[tuple[str, str]]:
    if not isinstance(node, yaml.MappingNode) or not node.value:
        yield prefix, f"{file}:{node.start_mark.line + 1}" if node else file
        return
    for key, value in node.value:
        yield from _lines(value, f"{prefix}.{key.value}" if prefix else str(key.value), file)


def apply_overrides(values: dict[str, Any], provenance: dict[str, str], overrides: list[str]) -> None:
    """Write each `key.sub=value` of the command line into `values` (in place); the value is read as YAML.

    Raises:
        DestructError: an override has no "=", is not YAML, or descends into something that is not a section.
    """
    for override in overrides:
        dotted, equals, raw = override.partition("=")
        *parents, leaf = keys = dotted.split(".")
        if not equals or not all(keys):
            raise DestructError(f"override {override!r} is not of the form key.sub=value", "write e.g. ppo.epochs=2")
        value, _ = _parse(raw, f"override {override!r}")
        place = values
        for parent in parents:
            if place.get(parent) is None:
                place[parent] = {}
            place = place[parent]
            if not isinstance(place, dict):
                raise DestructError(f"override {override!r}: {parent} is not a section", "name a key inside a section")
        place[leaf] = value
        for key in [key for key in provenance if key == dotted or key.startswith(f"{dotted}.")]:
            del provenance[key]
        provenance.update(dict.fromkeys(_leaves(value, dotted), COMMAND_LINE))


def _leaves(value: Any, dotted: str) -> Iterator[str]:
    if not isinstance(value, dict) or not value:
        yield dotted
        return
    for key, item in value.items():
        yield from _leaves(item, f"{dotted}.{key}")
