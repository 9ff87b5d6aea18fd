"""Write a report: `destruct report RUN [RUN ...] [--to FILE]`.

One HTML page that opens offline and holds no script: of one run what happened, its curves, what the model said, its
events and how to run it again; of several how they differ.  RUN is a run's folder, or its name in runs/; it may be
going on, or have been killed.
"""

import argparse
import sys
from pathlib import Path

from destruct.doors import Parser, find_run, told
from destruct.errors import DestructError
from destruct.exits import Exit, leave

PAGE = "report.html"

EPILOG = """By default the page is RUN/report.html, or ./report.html of several runs.  A run that ends writes its own.
Exit codes: 0 done, 2 something is not there or damaged, 3 a file cannot be read or written."""


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; DestructError where it cannot be read."""
    parser = Parser(
        "write: RUN [RUN ...] [--to FILE]; --help says more",
        prog="destruct report",
        description=__doc__,
        epilog=EPILOG,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or its name in runs/")
    parser.add_argument("--to", type=Path, metavar="FILE", help="where to write the page")
    return parser.parse_args(arguments)


def report(options: argparse.Namespace) -> int:
    """Write the page and say where; DestructError where that cannot be done."""
    folders = list(dict.fromkeys(find_run(name) for name in options.runs))
    for folder in folders:
        if not (folder / "resolved.yaml").is_file():
            raise DestructError(f"{folder} is not a run's folder: it has no resolved.yaml", "name the folder of a run")
    path = options.to or (folders[0] / PAGE if len(folders) == 1 else Path(PAGE))
    if path.is_dir():
        raise DestructError(f"--to {path} is a folder", f"name a file, e.g. {path / PAGE}")
    if not path.parent.is_dir():
        raise DestructError(f"--to {path}: there is no folder {path.parent}", "make it, or name another file")
    from destruct.progress import progress  # rich, numpy and the config, which --help does not need
    from destruct.reporting.page import render, write
    from destruct.reporting.recorded import read

    with progress("read", unit="B") as tell:
        runs = [read(folder, tell=tell) for folder in folders]
    write(render(runs), path)
    print(path)
    return Exit.DONE


def main(arguments: list[str] | None = None) -> int:
    """Write a report; returns the exit code."""
    return told(lambda: report(parse(sys.argv[1:] if arguments is None else arguments)))


if __name__ == "__main__":
    leave(main())
