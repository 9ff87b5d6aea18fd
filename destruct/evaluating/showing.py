"""An evaluation on the screen, and as a page of Markdown."""

import re
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from destruct.evaluating.evaluation import Evaluation
from destruct.evaluating.report import Continued, Grid, continued, grids, legend, names, printable, settings

PIPED = 1000
"""Characters of a line where output is piped: none is broken."""
BORDERS = 3
"""Characters of a table beside each column's cells."""


def shown(evaluation: Evaluation) -> str:
    """What a screen shows; plain columns where output is piped, and as many tables as a narrow terminal needs."""
    terminal = Console().is_terminal
    console = Console(width=None if terminal else PIPED, highlight=False, markup=False)
    with console.capture() as screen:
        _print(evaluation, console, terminal)
    return screen.get()


def _print(evaluation: Evaluation, console: Console, terminal: bool) -> None:
    for line in [*names(evaluation), settings(evaluation)]:
        console.print(line, soft_wrap=True)
    for grid in grids(evaluation):
        console.print(f"\n{grid.title}", soft_wrap=True)
        for part in _parts(grid, console.width):
            console.print(_table(part, terminal))
    for line in ["", *legend(evaluation)]:
        console.print(line, soft_wrap=True)
    for topic, group in continued(evaluation).items():
        console.print(f"\n{printable(topic)}", style="bold")
        for each in group:
            console.print(_spoken(each), soft_wrap=True)


def _parts(grid: Grid, width: int) -> Iterator[Grid]:
    """The columns that fit beside the first, as often as it takes."""
    first, *others = grid.columns.items()
    room = width - 1 - _width(*first)
    columns, left = dict([first]), room
    for heading, cells in others:
        needed = _width(heading, cells)
        if needed > left and len(columns) > 1:
            yield Grid(grid.title, columns)
            columns, left = dict([first]), room
        columns[heading] = cells
        left -= needed
    yield Grid(grid.title, columns)


def _width(heading: str, cells: list[str]) -> int:
    return max(map(len, [heading, *cells])) + BORDERS


def _table(grid: Grid, borders: bool) -> Table:
    table = Table() if borders else Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for place, heading in enumerate(grid.columns):
        table.add_column(heading, justify="right" if place else "left", overflow="fold")
    for row in zip(*grid.columns.values(), strict=True):
        table.add_row(*row)
    return table


def _spoken(each: Continued) -> str:
    texts = [printable(text).strip() for text in [each.text, *each.said]]
    marks = ["> ", "  "] if len(each.said) == 1 else ["> ", "A ", "B "]
    return "\n".join(mark + text.replace("\n", "\n  ") for mark, text in zip(marks, texts, strict=True))


def markdown(evaluation: Evaluation) -> str:
    """The page."""
    parts = ["# Evaluation", "\n".join(f"- {name}" for name in names(evaluation)), settings(evaluation)]
    for grid in grids(evaluation):
        parts += [f"## {grid.title}", _rows(grid)]
    parts.append("\n".join(f"- {line}" for line in legend(evaluation)))
    groups = continued(evaluation)
    if groups:
        parts.append("## Prompts")
    for topic, group in groups.items():
        parts.append(f"### {_cell(printable(topic))}")
        for each in group:
            parts += ["prompt:", _fenced(each.text)]
            for letter, text in zip([" of A", " of B"] if len(each.said) > 1 else [""], each.said, strict=True):
                parts += [f"continuation{letter}:", _fenced(text)]
    return "\n\n".join(parts) + "\n"


def _rows(grid: Grid) -> str:
    lines = [list(grid.columns), ["---", *["--:"] * (len(grid.columns) - 1)], *zip(*grid.columns.values(), strict=True)]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    """A text that stays in its cell, or in its line."""
    return text.replace("|", "\\|").replace("*", "\\*").replace("\n", " ")


def _fenced(text: str) -> str:
    """A text as it is, between fences that it does not hold."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}text\n{printable(text)}\n{fence}"
