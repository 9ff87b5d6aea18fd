"""Explain keys: `destruct config explain KEY ... [--config FILE]`, or look for one: `... explain --search WORD`.

Type, default, bounds and meaning of a key of the YAML (ppo.clip_range) or of a DeepSpeed JSON (optimizer.params.lr), of
a section every key; with --config also the value that a run has, and where it comes from.
"""

import argparse
import json
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from destruct.configuring.answer import say
from destruct.doors import Parser, told
from destruct.errors import DestructError
from destruct.exits import Exit, leave

if TYPE_CHECKING:
    from destruct.configuring.keys import Key, Values

EPILOG = """`<name>` stands for a name that you choose: data.sources.<name>.hub; data.sources.mine.hub is understood.
Exit codes: 0 explained, 2 there is no such key."""


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; DestructError where it cannot be read."""
    parser = Parser(
        "write: KEY ... [--config FILE], or --search WORD; --help says more",
        prog="destruct config explain",
        description=__doc__,
        epilog=EPILOG,
    )
    parser.add_argument("keys", nargs="*", metavar="KEY", help="a key or a section, dotted")
    parser.add_argument("--config", type=Path, metavar="FILE", help="the YAML of a run")
    parser.add_argument("--search", metavar="WORD", help="the keys that have WORD in their name or their meaning")
    options = parser.parse_intermixed_args(arguments)
    if bool(options.keys) == (options.search is not None):
        said = "keys and --search are given" if options.keys else "no key is given"
        raise DestructError(said, "write a key or a section, such as ppo.clip_range or ppo, or --search WORD alone")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Explain; returns the exit code."""
    return told(lambda: _answer(parse(sys.argv[1:] if arguments is None else arguments)))


def _answer(options: argparse.Namespace) -> int:
    from destruct.configuring.keys import Values, find

    values = None if options.config is None else Values(options.config)
    if options.search is not None:
        lines = search(options.search, values)
    else:
        found = [(name, key) for name in options.keys for key in find(name)]
        blocks = [list(explained(name, key, values)) for name, key in found]
        lines = [line for block in blocks for line in ["", *block]][1:]
    say("\n".join(lines))
    return Exit.DONE


def explained(name: str, key: "Key", values: "Values | None") -> Iterator[str]:
    """The lines about a key.

    Args:
        name: what the person wrote for it.
    """
    from destruct.configuring.keys import below

    yield f"{key.path}  ({key.file})"
    kind, default, bounds = key.facts
    for head, text in (("type", kind), ("default", default), ("takes", bounds)):
        if text and not (key.is_section and head == "type"):
            yield f"  {head:<9}{text}"
    if not key.is_section:
        yield from (f"  {'here':<9}{text}" for text in _here(name, key, values) or _here(key.path, key, values))
    yield from textwrap.wrap(key.meaning, _width(), initial_indent="  ", subsequent_indent="  ")
    if key.is_section:
        yield from _rows(below(key, name), values)


def _here(name: str, key: "Key", values: "Values | None") -> list[str]:
    """The value of a key in a run's files, for each place that it stands at."""
    found = [] if values is None else values.of(key.file, name)
    return [
        f"{'' if path == key.path else f'{path}: '}{json.dumps(value, ensure_ascii=False)}  # {origin}"
        for path, value, origin in found
    ]


def _rows(keys: list["Key"], values: "Values | None") -> list[str]:
    """A line for each key of a section: with a run's files its value there, else what it takes."""
    rows = []
    for key in keys:
        kind, default, bounds = key.facts
        here = "; ".join(_here(key.path, key, values))
        rows.append((key.path, kind, f"default {default}" if default != "required" else default, here or bounds))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return ["  " + "  ".join([*map(str.ljust, row, widths), row[3]]).rstrip() for row in rows]


def search(word: str, values: "Values | None") -> list[str]:
    """A line for each key that has a word in its name or its meaning.

    Raises:
        DestructError: there is none.
    """
    from destruct.configuring.keys import all_keys

    found = [key for key in all_keys() if word.lower() in f"{key.path}\n{key.meaning}".lower()]
    if not found or not word.strip():
        raise DestructError(f"no key has {word!r} in its name or its meaning", "try a part of the word, or another")
    lines: dict[str, None] = {}
    for key in found:  # both JSON files have most keys of the one block
        here = "" if key.is_section else "; ".join(_here(key.path, key, values))
        lines.setdefault(f"{key.path}: {f'{here}  ' if here else ''}{_around(word, key.meaning)}")
    return list(lines)


def _around(word: str, meaning: str) -> str:
    """The part of a meaning that has a word in it, or its beginning, in some 80 characters."""
    place = max(meaning.lower().find(word.lower()), 0)
    start = 0 if place + len(word) <= 72 else meaning.rfind(" ", 0, place - 30) + 1
    part = textwrap.shorten(meaning[start:], 80, placeholder=" …")
    return f"… {part}" if start else part


def _width() -> int:
    return min(shutil.get_terminal_size((100, 24)).columns, 120)


if __name__ == "__main__":
    leave(main())
