"""bench/results.csv: what was measured, on what, at which commit; each benchmark's `--append` adds its figures."""

import argparse
import csv
import datetime
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "bench" / "results.csv"
COLUMNS = (
    *("date", "benchmark", "figure", "p20", "p50", "p80", "unit"),
    *("conditions", "device", "versions", "commit"),
)
PACKAGES = ("torch", "transformers", "deepspeed")


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the results.

    Args:
        samples: in `unit`, of repetitions; one where a figure is of all of them together.
    """

    name: str
    unit: str
    samples: Sequence[float]


def add_option(parser: argparse.ArgumentParser) -> None:
    """`--append [FILE]`."""
    told = "add the figures to bench/results.csv, or that file"
    parser.add_argument("--append", type=_in_a_folder, nargs="?", const=FILE, help=told)


def _in_a_folder(text: str) -> Path:
    """A file that can be written, asked before hours are measured."""
    path = Path(text)
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text} cannot be written; name a file in a folder that is there")
    return path


def append(
    path: Path,
    benchmark: str,
    figures: Iterable[Figure],
    conditions: str,
    device: str | None = None,
    packages: Iterable[str] = PACKAGES,
) -> None:
    """Add a line for each figure, today's, with the device and the versions and commit of what was measured.

    Args:
        conditions: sizes and settings; the same ones are compared by bench/compare.py.
        device: as `here()` unless given.
        packages: whose versions are told.
    """
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    about = [conditions, device or here(), versions, commit()]
    is_new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if is_new:
            writer.writerow(COLUMNS)
        for figure in figures:
            told = [f"{value:.4g}" for value in np.percentile(figure.samples, (20, 50, 80))]
            spread = told if len(figure.samples) > 1 else ["", told[1], ""]
            today = datetime.date.today().isoformat()
            writer.writerow([today, benchmark, figure.name, *spread, figure.unit, *about])


def here() -> str:
    """This machine's processor and the cores that this process may use."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{named[0] if named else platform.processor()}, {len(os.sched_getaffinity(0))} cores"


def commit() -> str:
    """Short hash of the last commit, with a + where files differ from it; empty outside a checkout."""
    command = ["git", "-C", str(ROOT), "describe", "--exclude=*", "--always", "--dirty=+", "--abbrev=9"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
