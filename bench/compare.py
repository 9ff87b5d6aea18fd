"""What has become slower or larger: the last two measurements of each figure in bench/results.csv.

    make bench-compare
    python -m bench.compare --benchmark ppo_iteration

A figure is compared where benchmark, conditions and device are the same and the commits are not.  Flagged are medians
of times that are 10% longer, of rates that are 10% lower, and of memory that is 2% more; the exit status is 1 then.
Where the ranges from the 20th to the 80th percentile overlap, that is said: measure such figures again.
"""

import argparse
import csv
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bench.results import FILE

LONGER, MORE = 0.10, 0.02
TIMES, RATES, MEMORY = ("s", "ms", "us"), ("tokens/s",), ("bytes", "KiB", "MiB", "GiB")
Line = dict[str, str]


@dataclass(frozen=True, slots=True)
class Change:
    """A figure measured at two commits."""

    before: Line
    after: Line

    @property
    def share(self) -> float:
        """By which the median has become worse."""
        before, after = float(self.before["p50"]), float(self.after["p50"])
        if self.after["unit"] in RATES:
            before, after = after, before
        return after / before - 1 if before else 0.0

    @property
    def is_flagged(self) -> bool:
        """Whether it is worse by more than is let pass."""
        return self.share > (MORE if self.after["unit"] in MEMORY else LONGER)

    @property
    def overlaps(self) -> bool:
        """Whether both ranges are known and share a value."""
        edges = [line[name] for line in (self.before, self.after) for name in ("p20", "p80")]
        if not all(edges):
            return False
        low, high, later_low, later_high = map(float, edges)
        return later_low <= high and low <= later_high

    def said(self) -> str:
        """One line for people."""
        before, after = self.before, self.after
        words = f"{after['benchmark']}: {after['figure']}: {before['p50']} -> {after['p50']} {after['unit']}"
        words += f" ({self.share:+.1%} worse), {before['commit']} -> {after['commit']}; {after['conditions']}"
        return words + ("; the ranges overlap" if self.overlaps else "")


def changes(lines: Iterable[Line]) -> list[Change]:
    """Of every figure with a unit of time, rate or memory: its last line against the last one of another commit."""
    measured: dict[tuple[str, ...], list[Line]] = defaultdict(list)
    for line in lines:
        if line["commit"] and line["unit"] in (*TIMES, *RATES, *MEMORY):
            key = tuple(line[name] for name in ("benchmark", "figure", "unit", "conditions", "device"))
            measured[key].append(line)
    found = []
    for history in measured.values():
        earlier = [line for line in history if line["commit"] != history[-1]["commit"]]
        if earlier:
            found.append(Change(earlier[-1], history[-1]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=FILE, help="default bench/results.csv")
    parser.add_argument("--benchmark", help="this one alone")
    options = parser.parse_args()
    if not options.results.is_file():
        parser.error(f"{options.results} is no file; name one that a benchmark's --append has written")
    with options.results.open(newline="", encoding="utf-8") as file:
        lines = [line for line in csv.DictReader(file) if options.benchmark in (None, line["benchmark"])]
    found = changes(lines)
    flagged = sorted((change for change in found if change.is_flagged), key=lambda change: -change.share)
    for change in flagged:
        print(change.said())
    print(f"{len(flagged)} of {len(found)} figures measured at two commits are worse", file=sys.stderr)
    sys.exit(bool(flagged))


if __name__ == "__main__":
    main()
