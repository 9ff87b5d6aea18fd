"""How long `--help` of every command takes: `python -m bench.doors [--repeats N]`, a table in Markdown.

Seconds from the start of the process to its end, median and largest, and of the processor alone, which other work on
the machine moves less.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

from destruct.config.__main__ import WAYS as OF_CONFIG
from destruct.doors import DOORS
from destruct.launch import WAYS as OF_LAUNCH


def commands() -> Iterator[list[str]]:
    """`destruct` itself, each command, and each sub-command of those that have some."""
    yield []
    yield from ([door] for door in DOORS)
    for door, ways in (("config", OF_CONFIG), ("launch", OF_LAUNCH)):
        yield from ([door, way] for way in ways)


def once(command: list[str]) -> tuple[float, float]:
    """Seconds of one `--help`: on the clock, and of the processor."""
    before, begun = os.times(), time.perf_counter()
    subprocess.run([sys.executable, "-m", "destruct.doors", *command, "--help"], capture_output=True, check=True)
    seconds, after = time.perf_counter() - begun, os.times()
    busy = after.children_user - before.children_user + after.children_system - before.children_system
    return seconds, busy


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="of each (default 9)")
    repeats = parser.parse_args().repeats
    print("| command | median, s | largest, s | processor, s |\n|---|--:|--:|--:|")
    for command in commands():
        took = [once(command) for _ in range(repeats)]
        clock, busy = ([pair[place] for pair in took] for place in (0, 1))
        name = " ".join(["destruct", *command, "--help"])
        print(
            f"| `{name}` | {statistics.median(clock):.2f} | {max(clock):.2f} | {statistics.median(busy):.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
