"""The file of results, and what is said to have become worse in it."""

import argparse
import csv
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.compare import changes
from bench.results import COLUMNS, FILE, ROOT, Figure, add_option, append, commit

KEY = {"benchmark": "b", "conditions": "c", "device": "d"}


def line(figure: str, p50: float, commit: str, unit: str = "s", **others: str) -> dict[str, str]:
    told = dict.fromkeys(COLUMNS, "") | KEY
    return told | {"figure": figure, "p50": str(p50), "unit": unit, "commit": commit} | others


def written(path: Path, lines: list[dict[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(lines)
    return path


def test_every_line_of_the_results_has_the_columns_and_a_number():
    with FILE.open(newline="", encoding="utf-8") as file:
        header, *lines = csv.reader(file)
    assert tuple(header) == COLUMNS
    for told in lines:
        assert len(told) == len(COLUMNS)
        float(told[COLUMNS.index("p50")])


def test_a_line_tells_the_spread_and_what_was_measured_on_what(tmp_path):
    """0, 1, ... 10: the 20th percentile is 2, the 80th 8.  One sample has no spread."""
    figures = [Figure("time", "s", range(11)), Figure("peak", "MiB", [3.0])]
    for _ in range(2):
        append(tmp_path / "f.csv", "b", figures, "sizes", packages=["torch"])
    with (tmp_path / "f.csv").open(newline="", encoding="utf-8") as file:
        told = list(csv.DictReader(file))
    assert [[each[name] for name in ("figure", "p20", "p50", "p80", "unit")] for each in told] == [
        ["time", "2", "5", "8", "s"],
        ["peak", "", "3", "", "MiB"],
    ] * 2
    for each in told:
        assert each["versions"] == f"torch {importlib.metadata.version('torch')}" and each["conditions"] == "sizes"
        assert each["device"].endswith(f"{len(os.sched_getaffinity(0))} cores")


def test_the_commit_is_that_of_the_checkout_and_tells_of_changes():
    head = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True)
    if head.returncode:
        assert commit() == ""
        return
    changed = subprocess.run(["git", "-C", ROOT, "diff", "--quiet", "HEAD"]).returncode
    assert head.stdout.startswith(commit().rstrip("+")) and commit().endswith("+") == bool(changed)


@pytest.mark.parametrize(
    ("unit", "before", "after", "flagged"),
    [
        ("s", 1.0, 1.09, False),
        ("s", 1.0, 1.11, True),
        ("ms", 1.0, 0.5, False),
        ("MiB", 100, 101, False),
        ("MiB", 100, 103, True),
        ("tokens/s", 100, 95, False),
        ("tokens/s", 100, 89, True),  # 100 / 89 is 12% more time
    ],
)
def test_what_is_flagged(unit, before, after, flagged):
    (change,) = changes([line("f", before, "one", unit), line("f", after, "two", unit)])
    assert change.is_flagged == flagged


def test_the_last_line_is_compared_with_the_last_of_another_commit_under_the_same_conditions():
    lines = [
        line("f", 1, "one"),
        line("f", 2, "two"),
        line("f", 9, "two", device="another"),
        line("g", 9, "two"),
        line("f", 3, "three"),
        line("f", 4, "three"),
        line("f", 5, ""),  # of no known commit
        line("ratio", 1, "one", unit="1"),
        line("ratio", 9, "two", unit="1"),
    ]
    (change,) = changes(lines)
    assert (change.before["p50"], change.after["p50"]) == ("2", "4") and change.share == 1


def test_ranges_that_share_a_value_are_told(tmp_path):
    before = line("f", 1.0, "one", p20="0.9", p80="1.3")
    shared, apart = line("f", 1.5, "two", p20="1.2", p80="1.6"), line("f", 1.5, "two", p20="1.4", p80="1.6")
    assert changes([before, shared])[0].overlaps and not changes([before, apart])[0].overlaps
    assert not changes([line("f", 1.0, "one"), shared])[0].overlaps


@pytest.mark.parametrize("where", ["missing/f.csv", "."])
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(where, tmp_path, capsys):
    parser = argparse.ArgumentParser()
    add_option(parser)
    assert parser.parse_args(["--append"]).append == FILE
    assert parser.parse_args(["--append", str(tmp_path / "new.csv")]).append == tmp_path / "new.csv"
    with pytest.raises(SystemExit):
        parser.parse_args(["--append", str(tmp_path / where)])
    assert "cannot be written; name a file" in capsys.readouterr().err


def test_a_missing_file_of_results_is_told_in_a_line(tmp_path):
    command = [sys.executable, "-m", "bench.compare", "--results", str(tmp_path / "none.csv")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "none.csv is no file; name one" in done.stderr.splitlines()[-1]


def test_the_command_names_what_is_worse_and_fails(tmp_path):
    lines = [line("slower", 1, "one"), line("slower", 2, "two"), line("same", 1, "one"), line("same", 1, "two")]
    for told, status in ((lines, 1), (lines[2:], 0)):
        command = [sys.executable, "-m", "bench.compare", "--results", str(written(tmp_path / "f.csv", told))]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        assert ("b: slower: 1 -> 2 s (+100.0% worse), one -> two; c" in done.stdout) == bool(status)
        assert "same" not in done.stdout
