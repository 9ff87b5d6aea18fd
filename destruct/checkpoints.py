"""A run's checkpoints: `destruct checkpoints RUN [--verify] [--prune N] [--pick NAME]`.

RUN is a run's folder, or its name in runs/.  Without an option they are listed; what lies there is compared by name and
size, and with --verify by the digest of every file.
"""

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from destruct.checkpoint import finding, manifest, shelf
from destruct.checkpoint.state import TrainState
from destruct.doors import Parser, find_run, told
from destruct.errors import DestructError
from destruct.exits import Exit, leave
from destruct.progress import progress


@dataclass(frozen=True, slots=True)
class Entry:
    """One checkpoint."""

    name: str
    saved: str  # local time
    ranks: int | None
    backend: str | None
    mib: float  # of its files
    fault: str | None  # what is wrong with it
    pointers: list[str]  # those that name it


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; DestructError where it cannot be read."""
    parser = Parser("write: RUN [--verify]; --help says more", prog="destruct checkpoints", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="a run's folder, or its name in runs/")
    parser.add_argument("--verify", action="store_true", help="hold every file against its digest")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--prune",
        type=int,
        metavar="N",
        help="keep the newest N that are whole and the best one; delete the others, and those that were given up",
    )
    what.add_argument("--pick", metavar="NAME", help="let the run go on from this one; later ones are given up")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    return parser.parse_args(arguments)


def survey(folder: Path, verify: bool) -> list[Entry]:
    """The checkpoints of a `checkpoints/` folder, newest first.

    Args:
        verify: hold every file against its digest.
    """
    pointed = {key: finding.name_in(folder / key) for key in (finding.LATEST, finding.BEST)}
    sizes = {checkpoint: _bytes(checkpoint) for checkpoint in finding.checkpoints(folder)}
    entries = []
    with progress("verify", sum(sizes.values()), "B") if verify else nullcontext() as tell:
        checked = {checkpoint: _checked(checkpoint, verify, tell) for checkpoint in sizes}
    for checkpoint, (facts, fault) in checked.items():
        size = sizes[checkpoint]
        saved = datetime.fromtimestamp(checkpoint.stat().st_mtime).isoformat(" ", "seconds")
        pointers = [key for key, name in pointed.items() if name == checkpoint.name]
        ranks, backend = facts.get("ranks"), facts.get("engine.backend")
        entries.append(Entry(checkpoint.name, saved, ranks, backend, size / 2**20, fault, pointers))
    return entries


def _bytes(checkpoint: Path) -> int:
    return sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())


def _checked(checkpoint: Path, verify: bool, tell: Callable[[int], None] | None) -> tuple[dict[str, Any], str | None]:
    """Its manifest, if that can be read, and what is wrong with it."""
    try:
        return manifest.verify(checkpoint, tell) if verify else manifest.read(checkpoint), None
    except manifest.Damaged as damage:
        return {}, str(damage)


def prune(folder: Path, entries: list[Entry], keep: int) -> list[str]:
    """Delete all but the newest `keep` whole ones and the best, and what was given up; returns what was deleted.

    Raises:
        DestructError: none would stay.
    """
    whole = [entry.name for entry in entries if entry.fault is None]
    if keep < 1 or not whole:
        raise DestructError(
            f"--prune {keep} would leave no checkpoint that is whole in {folder}",
            "keep at least one" if whole else "leave them: what is in them may be mended by hand",
        )
    stay = {*whole[:keep], finding.name_in(folder / finding.BEST)}
    gone = [folder / entry.name for entry in entries if entry.name not in stay]
    gone += sorted((folder / shelf.GIVEN_UP).glob("*"))
    for checkpoint in gone:
        shelf.discard(checkpoint)
    return [path.relative_to(folder).as_posix() for path in gone if not path.exists()]


def pick(folder: Path, name: str) -> None:
    """Let the run go on from a checkpoint.

    Raises:
        DestructError: there is no such one, or it is damaged.
    """
    checkpoint = folder / name
    if not finding.is_name(name) or not checkpoint.is_dir():
        names = ", ".join(path.name for path in finding.checkpoints(folder))
        raise DestructError(f"{folder} holds no checkpoint {name!r}", f"name one of: {names}")
    try:
        with progress("verify", _bytes(checkpoint), "B") as tell:
            manifest.verify(checkpoint, tell)
    except manifest.Damaged as damage:
        raise DestructError(str(damage), "pick another one") from None
    shelf.stand_at(checkpoint, shelf.best_of(folder, TrainState.load(checkpoint / shelf.STATE)))


def show(entries: list[Entry], verified: bool) -> None:
    """The table."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("checkpoint", "saved", "ranks", "backend", "MiB", "", ""):
        table.add_column(heading, justify="right" if heading in ("ranks", "MiB") else "left", overflow="fold")
    for entry in entries:
        state = entry.fault or ("whole" if verified else "names and sizes are right")
        ranks, backend = entry.ranks or "?", entry.backend or "?"
        table.add_row(
            entry.name, entry.saved, str(ranks), backend, f"{entry.mib:,.1f}", state, " ".join(entry.pointers)
        )
    width = None if Console().is_terminal else 200
    Console(width=width, highlight=False, markup=False).print(table)


def run(options: argparse.Namespace) -> int:
    """What is asked for; DestructError where it cannot be done."""
    folder = find_run(options.run) / "checkpoints"
    if options.pick is not None:
        pick(folder, options.pick)
        print(f"the run stands at {options.pick}; --resume auto goes on from there")
    verify = options.verify or options.prune is not None
    entries = survey(folder, verify)
    if not entries:
        raise DestructError(f"{folder} holds no checkpoint", "name another run")
    if options.prune is not None:
        for name in prune(folder, entries, options.prune):
            print(f"deleted {name}", file=sys.stderr)
        entries = survey(folder, verify)
    if options.json:
        print(json.dumps({"checkpoints": [asdict(entry) for entry in entries]}, indent=1))
    else:
        show(entries, verify)
    return Exit.ENVIRONMENT if any(entry.fault for entry in entries) else Exit.DONE


def main(arguments: list[str] | None = None) -> int:
    """Print the checkpoints of a run; returns the exit code, 3 where one is damaged."""
    return told(lambda: run(parse(sys.argv[1:] if arguments is None else arguments)))


if __name__ == "__main__":
    leave(main())
