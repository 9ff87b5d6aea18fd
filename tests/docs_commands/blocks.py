"""The commands of the pages: fenced `bash` blocks, what is written above them, and the output that is quoted below.

An HTML comment right above a block says what is special about it:

    <!-- full: 4 min -->             not run by the test but by `make docs-full`, and parsed by the test all the same
    <!-- full: 8 gpus, hub -->       the same, where the machine has that; the words are those of `NEEDS`
    <!-- exit: 2 -->                 its last command ends with 2, all others with 0
    <!-- full: 1 min; exit: 75 -->   both
    <!-- file: my_rewards.py -->     of any language but bash: the block is that file, written before the page is run
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

NEEDS = {
    r"\d+ (s|min)": "takes so long",
    r"\d+ gpus": "needs so many GPUs",
    "hub": "needs the Hugging Face hub, or access to a gated model",
    "slurm": "needs a Slurm cluster",
    "hosts": "needs other hosts, with this checkout at the same path",
    "yours": "reads files that are the reader's own",
    "account": "logs in with an account of the reader's own",
    "waits": "goes on until somebody ends it",
    "hours": "takes hours",
    "tests": "is the tests themselves",
    "install": "installs what runs it",
}
"""What may stand behind `full:`, as patterns, and what each means."""

FENCE = re.compile(r"```(\w*)\s*")
COMMENT = re.compile(r"<!-- ((?:full|exit|file): .*?) -->")


class PageFault(Exception):
    """A page that cannot be read as commands: its place and what is wrong."""


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: str  # relative to the checkout
    line: int  # of its fence, from 1
    language: str
    lines: tuple[str, ...]
    needs: tuple[str, ...]  # of NEEDS; empty: the test runs it
    exit_code: int  # of the last command
    file: str | None  # what the block is written to
    quoted: tuple[str, ...]  # the output that the page shows, from the `text` block right below

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """Its commands; a line that ends in a backslash goes on, comments are none."""
        if self.language != "bash":
            return []
        text = re.sub(r" *\\\n *", " ", "\n".join(self.lines))
        found = [line.strip() for line in text.splitlines()]
        return [line for line in found if line and not line.startswith("#")]

    @property
    def seconds(self) -> float | None:
        """What is said of how long it takes."""
        for need in self.needs:
            if match := re.fullmatch(r"(\d+) (s|min)", need):
                return int(match[1]) * (60 if match[2] == "min" else 1)
        return None


def pages() -> list[Path]:
    """Every page with commands that a reader may type."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks_of(text: str, page: str) -> list[Block]:
    """The blocks of a page, in order; PageFault where one is open, or what is written above it cannot be read."""
    raw = list(_fenced(text.splitlines(), page))
    found = []
    for place, (line, language, lines, above) in enumerate(raw):
        needs, code, file = _annotation(above, f"{page}:{line}")
        ends = line + len(lines) + 1
        below = raw[place + 1] if place + 1 < len(raw) else None
        follows = below is not None and below[1] == "text" and below[0] <= ends + 2
        quoted = tuple(below[2]) if language == "bash" and follows and below is not None else ()
        found.append(Block(page, line, language, tuple(lines), needs, code, file, quoted))
    return found


def _fenced(lines: list[str], page: str) -> Iterator[tuple[int, str, list[str], str]]:
    """Line, language and contents of each fenced block, and the line above it."""
    begun: int | None = None
    for number, line in enumerate(lines, 1):
        if begun is None and (fence := FENCE.fullmatch(line)):
            begun, language = number, fence[1]
        elif begun is not None and line.rstrip() == "```":
            yield begun, language, lines[begun : number - 1], lines[begun - 2] if begun > 1 else ""
            begun = None
    if begun is not None:
        raise PageFault(f"{page}:{begun}: the block is not closed")


def _annotation(above: str, place: str) -> tuple[tuple[str, ...], int, str | None]:
    """Needs, exit code and file that the line above a block names."""
    match = COMMENT.fullmatch(above.strip())
    if match is None:
        return (), 0, None
    said = dict(part.partition(": ")[::2] for part in match[1].split("; "))
    needs = tuple(said.get("full", "").split(", ")) if "full" in said else ()
    for need in needs:
        if not any(re.fullmatch(pattern, need) for pattern in NEEDS):
            raise PageFault(f"{place}: {need!r} is none of {', '.join(NEEDS)}")
    return needs, int(said.get("exit", "0")), said.get("file")


def shape(line: str) -> str:
    """What a line of output is compared by: its first word, without its rank and frames, figures as 0; empty: none."""
    words = re.sub(r"[─-╿|]", " ", re.sub(r"^\[rank \d+\] ", "", line)).split()
    return re.sub(r"\d+", "0", words[0]) if words else ""


def missing(quoted: tuple[str, ...] | list[str], said: list[str]) -> list[str]:
    """The quoted lines of which no line of that shape comes in what was said, in the order of the quote.

    A line of `...` alone stands for whatever was left out.
    """
    lost, rest = [], iter([shape(line) for line in said])
    for line in quoted:
        wanted = shape(line)
        if wanted in ("", "..."):
            continue
        before = list(rest)
        if wanted in before:
            rest = iter(before[before.index(wanted) + 1 :])
        else:
            lost.append(line)
            rest = iter(before)
    return lost
