"""docs/outputs.md: what every command of the docs said when it was last run in full, and what was not run."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.docs_commands.blocks import NEEDS, ROOT
from tests.docs_commands.session import Said

PAGE = ROOT / "docs" / "outputs.md"
FIRST, LAST = 14, 26
"""Lines of an output that are kept, from its beginning and its end."""

HEAD = """\
<!-- Made by `make docs-full`; run it again instead of changing this page. -->

# What the commands of these pages said

`make docs-full` runs every command of README and docs/ that the machine can run, in order, in a copy of the checkout,
and takes down here what each said, its seconds and its exit code. Long outputs are cut where `...` stands.
"""


@dataclass(frozen=True)
class Record:
    """One page as it was run."""

    page: str
    date: str
    machine: str
    said: tuple[Said, ...]
    not_run: tuple[tuple[str, str], ...]  # command, why


def cut(lines: Iterable[str]) -> list[str]:
    """The lines that are kept."""
    kept = [re.sub(r"```", "'''", line) for line in lines]
    return kept if len(kept) <= FIRST + LAST + 1 else [*kept[:FIRST], "...", *kept[-LAST:]]


def render(records: dict[str, Record]) -> str:
    """The page."""
    lines = [HEAD]
    for name in sorted(records):
        record = records[name]
        lines += [f"## {name}", "", f"{record.date}, {record.machine}.", ""]
        for answer in record.said:
            code = "not run, as one before it failed" if answer.code is None else f"exit code {answer.code}"
            lines += [f"### `{answer.command}`", "", f"{answer.seconds:.1f} s, {code}", ""]
            if answer.lines:
                lines += ["```text", *cut(answer.lines), "```", ""]
        if record.not_run:
            lines += ["| not run | why |", "|---|---|"]
            lines += [f"| `{command}` | {why} |" for command, why in record.not_run]
            lines.append("")
    return "\n".join(lines)


def why(needs: Iterable[str]) -> str:
    """The needs of a block in words."""
    said = []
    for need in needs:
        meaning = next(meaning for pattern, meaning in NEEDS.items() if re.fullmatch(pattern, need))
        said.append(f"{meaning} ({need})" if need[0].isdigit() else meaning)
    return "; ".join(said)


def read(path: Path) -> dict[str, Record]:
    """The records of a page that `render` wrote; none where there is no page."""
    if not path.exists():
        return {}
    records = {}
    for part in re.split(r"^## ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        name, _, rest = part.partition("\n")
        date, _, machine = rest.strip().splitlines()[0].rstrip(".").partition(", ")
        said = []
        for piece in re.split(r"^### `", rest, flags=re.MULTILINE)[1:]:
            command, _, body = piece.partition("`\n")
            seconds, code = re.findall(r"^([\d.]+) s, (?:exit code )?(-?\d+|not run)", body.strip())[0]
            output = re.search(r"```text\n(.*?)\n```", body, re.DOTALL)
            lines = tuple(output[1].splitlines()) if output else ()
            said.append(Said(command, None if code == "not run" else int(code), float(seconds), lines))
        rows = re.findall(r"^\| `(.+?)` \| (.+) \|$", rest, re.MULTILINE)
        records[name] = Record(name, date, machine, tuple(said), tuple(rows))
    return records


def write(path: Path, records: dict[str, Record]) -> None:
    """Render the records to the page."""
    path.write_text(render(records), encoding="utf-8")
