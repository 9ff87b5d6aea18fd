"""Real prose and real code: the documentation and the source of the running Python's standard library.

No module feeds both, so that no docstring held out from the one is trained on in the other.
"""

import ast
import random
import sys
import sysconfig
import textwrap
import tokenize
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

from destruct.seeding import derive

SHORTEST, LONGEST = 200, 2000  # bytes of a document
_PIECE = LONGEST - SHORTEST  # a piece of this size still fits behind a held one that is too short by itself

# Parts that some distributions package apart, tests, and tables of numbers that read like neither prose nor code.
_SKIPPED = {"test", "tests", "idlelib", "tkinter", "turtledemo", "turtle", "lib2to3", "distutils", "ensurepip"}
_SKIPPED |= {"site-packages", "encodings", "pydoc_data"}

_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def prose_documents(rng: random.Random, length: Callable[[], int]) -> Iterator[str]:
    """Paragraphs of the language reference (`pydoc_data`) and of docstrings, joined to documents of `length()` bytes.

    Args:
        rng: orders the topics and modules.
        length: bytes of the next document, drawn anew for each.

    Returns:
        the documents, SHORTEST to LONGEST bytes of UTF-8 each, until the library is exhausted.
    """
    from pydoc_data.topics import topics  # half a megabyte of text that only this source needs

    # Modules first as names: most are never parsed, because a few hundred kilobytes are soon reached.
    units: list[str | Path] = [*sorted(topics), *_modules("prose")]
    rng.shuffle(units)
    for unit in units:
        texts = [topics[unit]] if isinstance(unit, str) else _docstrings(ast.parse(_source(unit)))
        paragraphs = (paragraph.strip("\n") for text in texts for paragraph in text.split("\n\n"))
        yield from _joined(filter(_reads_as_prose, paragraphs), "\n\n", length)


def code_documents(rng: random.Random) -> Iterator[str]:
    """Functions, methods and classes of the library: small neighbours joined, the long ones cut between two lines.

    Args:
        rng: orders the modules.

    Returns:
        the documents, SHORTEST to LONGEST bytes of UTF-8 each, until the library is exhausted.
    """
    modules = _modules("code")
    rng.shuffle(modules)
    for file in modules:
        source = _source(file)
        lines = source.split("\n")  # not splitlines: a form feed ends no line of Python
        body = ast.parse(source).body
        pieces = (piece for node in body for definition in _definitions(node, lines) for piece in _cut(definition))
        yield from _joined(pieces, "\n\n", lambda: SHORTEST)


def _modules(source: str) -> list[Path]:
    """Files that belong to `source` by a hash of their name: the same on every installation of a Python version."""
    root = Path(sysconfig.get_path("stdlib"))
    owners = ("code", "prose")
    return [root / name for name in _module_names() if owners[derive(0, name) % 2] == source]


@cache
def _module_names() -> tuple[str, ...]:
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for file in root.rglob("*.py"):
        parts = file.relative_to(root).with_suffix("").parts
        if parts[0] in sys.stdlib_module_names and not _SKIPPED.intersection(parts):
            found.append(file.relative_to(root).as_posix())
    return tuple(sorted(found))


def _source(file: Path) -> str:
    with tokenize.open(file) as stream:  # honours the coding cookie
        return stream.read()


def _docstrings(node: ast.Module | _Definition) -> Iterator[str]:
    if text := ast.get_docstring(node):
        yield text
    # The definitions alone: ast.walk would visit every expression and take ten times as long.
    for child in node.body:
        if isinstance(child, _Definition):
            yield from _docstrings(child)


def _reads_as_prose(paragraph: str) -> bool:
    """Sentences, not grammar productions, tables, examples or lists of options."""
    if not paragraph[:1].isalpha() or len(paragraph.split()) < 8 or len(paragraph.encode()) > _PIECE:
        return False
    plain = sum(character.isalpha() or character.isspace() for character in paragraph)
    return plain >= 0.85 * len(paragraph)


def _definitions(node: ast.AST, lines: list[str]) -> Iterator[str]:
    """The text of a function or class; of a class that is too long for a document, its head and then its methods."""
    if not isinstance(node, _Definition):
        return
    text = _text(lines, _first_line(node), node.end_lineno or node.lineno)
    methods = [child for child in node.body if isinstance(child, _Definition)]
    if isinstance(node, ast.ClassDef) and methods and len(text.encode()) > _PIECE:
        yield _text(lines, _first_line(node), _first_line(methods[0]) - 1)
        for method in methods:
            yield from _definitions(method, lines)
    else:
        yield text


def _first_line(node: _Definition) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def _text(lines: list[str], first: int, last: int) -> str:
    return textwrap.dedent("\n".join(lines[first - 1 : last])).strip("\n")


def _cut(text: str) -> Iterator[str]:
    """Cut between lines into pieces of at most _PIECE bytes; a single line longer than that is data and is left out."""
    held: list[str] = []
    size = 0
    for line in text.split("\n"):
        line_bytes = len(line.encode()) + 1
        if line_bytes > _PIECE:
            continue
        if size + line_bytes > _PIECE:
            yield "\n".join(held)
            held, size = [], 0
        held.append(line)
        size += line_bytes
    if held:
        yield "\n".join(held)


def _joined(pieces: Iterable[str], separator: str, length: Callable[[], int]) -> Iterator[str]:
    """Join consecutive pieces until each document has its length; a last one shorter than SHORTEST is dropped."""
    held, wanted = "", length()
    for piece in pieces:
        longer = f"{held}{separator}{piece}" if held else piece
        if len(longer.encode()) > LONGEST and len(held.encode()) >= SHORTEST:
            yield held
            longer = piece
        held = longer
        if len(held.encode()) >= wanted:
            yield held
            held, wanted = "", length()
    if len(held.encode()) >= SHORTEST:
        yield held
