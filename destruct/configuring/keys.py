"""Every key of the YAML and of the DeepSpeed JSON files, found by its name, with its value in a run's files."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_origin

from pydantic.fields import FieldInfo

from destruct.config.base import Section, leaves, sections_in, walk
from destruct.config.deepspeed import FrozenJSON, TrainingJSON, read_json
from destruct.config.reading import find_beside
from destruct.config.settings import Config, read_config
from destruct.config.words import bounds_of, default_of, meaning_of, sentence, type_of
from destruct.errors import DestructError

ROOTS: dict[str, type[Section]] = {
    "YAML": Config,
    "JSON of engine.deepspeed": TrainingJSON,
    "JSON of engine.frozen": FrozenJSON,
}
"""File -> what it holds."""

CHOSEN = "<name>"
"""Stands for a key that the user chooses, as in `walk`."""


@dataclass(frozen=True, slots=True)
class Key:
    """A key of a file, or what is below a name that the user chooses (`field` is None)."""

    file: str  # one of ROOTS
    path: str  # dotted
    holder: type[Section]  # the section that the key stands in; of a chosen name, what it holds
    field: FieldInfo | None
    is_section: bool

    @property
    def meaning(self) -> str:
        """Its docstring in one line."""
        return sentence(self.holder.__doc__) if self.field is None else meaning_of(self.field)

    @property
    def facts(self) -> tuple[str, str, str]:
        """Type, default and bounds in words; empty where there are none."""
        if self.field is None:
            return "section", "", ""
        schema = self.holder.model_json_schema()["properties"][self.path.rpartition(".")[2]]
        bounds = ", ".join(bounds_of(schema)).replace("`", "")
        return type_of(schema).replace("`", ""), default_of(self.field).strip("`"), bounds


def all_keys() -> Iterator[Key]:
    """Those of every file, a section before what it holds."""
    for file, root in ROOTS.items():
        holders = {"": root}
        for path, field in walk(root):
            inner = next(sections_in(field.annotation), None)
            yield Key(file, path, holders[path.rpartition(".")[0]], field, inner is not None)
            chosen = get_origin(field.annotation) is dict
            if inner is None:
                continue
            holders[f"{path}.{CHOSEN}" if chosen else path] = inner
            if chosen:
                yield Key(file, f"{path}.{CHOSEN}", inner, None, True)


def find(name: str) -> list[Key]:
    """The keys of a dotted name, one for each file that has it; `data.sources.prose.hub` is one, too.

    Raises:
        DestructError: there is none; the remedy names those that are near.
    """
    keys = list(all_keys())
    found = [key for key in keys if _fits(name, key.path)]
    parent = name.rpartition(".")[0]
    # A reward term is a key of reward.terms, which is explained as a whole.
    found = found or [k for k in keys if k.path == parent and k.field and _is_table(k.field) and not k.is_section]
    if found:
        return found
    near = near_names(name, keys)
    sections = ", ".join(Config.model_fields)
    remedy = f"did you mean {' or '.join(map(repr, near))}?" if near else f"sections: {sections}; or --search WORD"
    raise DestructError(f"there is no key {name!r}", remedy)


def _fits(name: str, path: str) -> bool:
    given, parts = name.split("."), path.split(".")
    return len(given) == len(parts) and all(b in (a, CHOSEN) and a for a, b in zip(given, parts, strict=True))


def _is_table(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is dict


def near_names(name: str, keys: list[Key]) -> list[str]:
    """Up to three paths whose last part is spelt like that of a name, or nearly; else those nearly like the whole."""
    paths = list(dict.fromkeys(key.path for key in keys))
    leaf = name.lower().rpartition(".")[2]
    leaves = difflib.get_close_matches(leaf, {path.rpartition(".")[2] for path in paths}, n=1, cutoff=0.75)
    likewise = [path for path in paths if path.rpartition(".")[2] in leaves]
    likewise.sort(key=lambda path: path.rpartition(".")[0] != name.lower().rpartition(".")[0])
    return likewise[:3] or difflib.get_close_matches(name.lower(), paths, n=3, cutoff=0.75)


def below(section: Key, name: str) -> list[Key]:
    """The keys in a section, and in its sections, that hold a value.

    Args:
        name: what the person wrote for the section; a name that they chose stays in the paths.
    """
    prefix = f"{section.path}."
    inside = [key for key in all_keys() if key.file == section.file and key.path.startswith(prefix)]
    return [
        Key(key.file, f"{name}.{key.path.removeprefix(prefix)}", key.holder, key.field, False)
        for key in inside
        if not key.is_section
    ]


class Values:
    """What a run's YAML says, and the JSON files that it names, which are read when one of their keys is asked for.

    Raises:
        DestructError: the YAML is refused by itself.
    """

    def __init__(self, path: Path):
        self._path = path
        self._config, origins = read_config(path, [])
        self._values = {"YAML": self._config.model_dump(mode="json")}
        self._origins = {"YAML": origins}

    def of(self, file: str, name: str) -> list[tuple[str, Any, str]]:
        """Path, value and origin of a key, for each name that the user chose where it stands for all of them.

        Raises:
            DestructError: the JSON file is refused by itself.
        """
        if file not in self._values:
            self._read(file)
        places: list[tuple[tuple[str, ...], Any]] = [((), self._values[file])]
        for part in name.split("."):
            places = [
                ((*place, inner), values[inner])
                for place, values in places
                if isinstance(values, dict)
                for inner in (values if part == CHOSEN else [part])
                if inner in values
            ]
        return [(".".join(place), value, self._origin(file, ".".join(place))) for place, value in places]

    def _read(self, file: str) -> None:
        key = file.removeprefix("JSON of ")
        path = find_beside(getattr(self._config.engine, key.removeprefix("engine.")), self._path, key)
        section = read_json(path, ROOTS[file])
        self._values[file] = section.model_dump(mode="json")
        given = leaves(section.model_dump(mode="json", exclude_unset=True))
        self._origins[file] = dict.fromkeys(given, path.name)

    def _origin(self, file: str, dotted: str) -> str:
        known = self._origins[file]
        found = [origin for key, origin in known.items() if key == dotted or key.startswith(f"{dotted}.")]
        return ", ".join(dict.fromkeys(found)) or "default"
