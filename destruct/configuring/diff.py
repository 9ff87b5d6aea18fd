"""Compare two configurations: `destruct config diff A B`.

Each is a YAML file, a run's folder or the name of a run in runs/ (then its resolved.yaml).  A file is filled with the
defaults first, so that a value is the same whether it is written or not; each value says where it comes from.
"""

import argparse
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from destruct.configuring.answer import say
from destruct.doors import Parser, find_run, told
from destruct.errors import DestructError
from destruct.exits import Exit, leave

DIFFERENT = 1
"""Exit code, as that of diff(1)."""

RESOLVED = "resolved.yaml"
"""What a run writes down; it is compared as it is, even where another version of the program wrote it."""

ENGINES = "deepspeed.json"
"""What a run's engines were given."""

EPILOG = """Of a source that one of them lacks, the keys that the other gives are shown.  Of two runs the filled
DeepSpeed JSON is compared too; YAML files name theirs, and there the names alone are compared.
Exit codes: 0 no key differs, 1 some do, 2 one of them cannot be read."""


@dataclass(frozen=True, slots=True)
class Side:
    """Everything that one of the two says."""

    name: str
    values: dict[str, Any]  # dotted key -> value
    origins: dict[str, str]  # dotted key -> file:line, `command line` or `default`
    engines: dict[str, Any]  # dotted key -> value, of a run's deepspeed.json

    def has_section(self, dotted: str) -> bool:
        """Whether it has the section that a key stands in."""
        parent = dotted.rpartition(".")[0]
        return any(key.startswith(f"{parent}.") for key in self.values)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; DestructError where it cannot be read."""
    parser = Parser(
        "write two YAML files or two runs; --help says more",
        prog="destruct config diff",
        description=__doc__,
        epilog=EPILOG,
    )
    parser.add_argument("sides", nargs=2, metavar="A|B", help="a YAML file, or a run: its folder, or its name in runs/")
    return parser.parse_args(arguments)


def read(name: str) -> Side:
    """One of the two, defaults included.

    Raises:
        DestructError: it is missing or refused.
    """
    from destruct.config.base import leaves
    from destruct.config.settings import read_config

    path = _file(name)
    if path.name == RESOLVED:
        return _resolved(name, path)
    config, provenance = read_config(path, [])
    values = leaves(config.model_dump(mode="json"))
    return Side(name, values, {key: provenance.get(key, "default") for key in values}, {})


def _file(name: str) -> Path:
    if Path(name).is_file():
        return Path(name)
    if name.endswith((".yaml", ".yml")):
        raise DestructError(f"there is no file {name}", "name a YAML file, or a run")
    path = find_run(name) / RESOLVED
    if not path.is_file():
        raise DestructError(f"{path.parent} has no {RESOLVED}, so no run has started there", "name another run")
    return path


def _resolved(name: str, path: Path) -> Side:
    """What a run wrote down; where a value comes from stands at the end of its line."""
    from destruct.config.base import leaves
    from destruct.config.reading import read_text, read_yaml

    nested, places = read_yaml(path)
    lines = read_text(path).splitlines()
    said = {key: lines[int(place.rpartition(":")[2]) - 1].rpartition("  # ") for key, place in places.items()}
    origins = {key: origin if mark else places[key] for key, (_, mark, origin) in said.items()}
    values = leaves(nested)
    return Side(name, values, {key: origins.get(key, path.name) for key in values}, _engines(path.parent))


def _engines(run: Path) -> dict[str, Any]:
    from destruct.config.base import leaves
    from destruct.config.reading import read_text

    path = run / ENGINES
    try:
        return leaves(json.loads(read_text(path))) if path.is_file() else {}
    except (ValueError, AttributeError) as error:
        raise DestructError(f"{path} is not what a run writes: {error}", "restore it, or move it away") from None


def with_engines(side: Side, other: Side) -> Side:
    """A run's values and what its engines were given, where the other one is a run, too."""
    if not (side.engines and other.engines):
        return side
    engines = {f"{ENGINES}:{key}": value for key, value in side.engines.items()}
    return replace(side, values=side.values | engines, origins=side.origins | dict.fromkeys(engines, ENGINES))


def differences(a: Side, b: Side) -> list[str]:
    """The keys that differ, in the order of A's file, those that only B has behind."""
    return [
        key
        for key in {**a.values, **b.values}
        if (key not in a.values or key not in b.values or a.values[key] != b.values[key])
        and not (_goes_without_saying(key, a, b) or _goes_without_saying(key, b, a))
    ]


def _goes_without_saying(key: str, there: Side, lacking: Side) -> bool:
    """A default of a source, say, that the other one does not have."""
    return key not in lacking.values and there.origins[key] == "default" and not lacking.has_section(key)


def main(arguments: list[str] | None = None) -> int:
    """Print the keys that differ; returns the exit code."""
    return told(lambda: _answer(parse(sys.argv[1:] if arguments is None else arguments)))


def _answer(options: argparse.Namespace) -> int:
    a, b = map(read, options.sides)
    a, b = with_engines(a, b), with_engines(b, a)
    keys = differences(a, b)
    count = len(a.values.keys() | b.values.keys())
    lines = [f"--- {a.name}", f"+++ {b.name}"] if keys else []
    for key in keys:
        lines += [key, f"  - {_value(key, a)}", f"  + {_value(key, b)}"]
    lines.append(f"{len(keys) or 'none'} of {count} keys {'differs' if len(keys) == 1 else 'differ'}")
    say("\n".join(lines))
    return DIFFERENT if keys else Exit.DONE


def _value(key: str, side: Side) -> str:
    from destruct.config.base import scalar

    return f"{scalar(side.values[key])}  # {side.origins[key]}" if key in side.values else "absent"


if __name__ == "__main__":
    leave(main())
