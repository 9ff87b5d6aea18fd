"""Finished trials: a JSON line each in results.jsonl, with the digest of the code that they were made on."""

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).with_name("results.jsonl")
UNDER_TEST = ("destruct", "launch/bin")

MUST_BE_ZERO = (
    "unrecoverable",
    "silent_restarts",
    "digest_mismatches",
    "undetected",
    "orphans",
    "misnamed_ranks",
    "poisoned_checkpoints",
)

FIGURES = (
    "kills",
    "unrecoverable",
    "silent_restarts",
    "digest_mismatches",
    "corruptions",
    "undetected",
    "signals",
    "orphans",
    "misnamed_ranks",
    "poisoned_checkpoints",
)
"""Keys of a trial's outcome that are added up, in the order of the campaign's line; one that is absent is 0."""

Outcome = dict[str, Any]
"""FIGURES, `wrong` (lines, one for each promise that was broken) and whatever else is worth keeping, as JSON."""


class CannotRun(Exception):
    """Why a trial cannot be made on this machine."""


class Trials:
    """Those of the code as it stands in the working tree; lines of other code stay in the file and count no more.

    Args:
        path: the results file.
        folder: an empty one, for what the trials write.
        kills: how many SIGKILLs are wanted.
    """

    def __init__(self, path: Path, folder: Path, kills: int):
        self.path, self.folder, self.kills = path, folder, kills
        self.code, self.commit = code_digest(), _git("rev-parse", "HEAD").strip()

    def of(self, part: str) -> list[Outcome]:
        """Finished ones of a part."""
        return [line for line in read(self.path) if (line["part"], line["code"]) == (part, self.code)]

    def make(self, part: str, name: str, trial: Callable[[], Outcome]) -> None:
        """Make a trial, unless it is finished."""
        if any(line["trial"] == name for line in self.of(part)):
            return
        begun = time.monotonic()
        try:
            outcome = trial()
        except CannotRun as reason:
            print(f"{part}: {name}: not run: {reason}", file=sys.stderr, flush=True)
            return
        line = {"part": part, "trial": name, "code": self.code, "commit": self.commit}
        line = outcome | line | {"seconds": round(time.monotonic() - begun, 1)}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        figures = ", ".join(f"{outcome[name]} {name}" for name in FIGURES if outcome.get(name))
        print(f"{part}: {name}: {figures or 'well'}, {line['seconds']} s", file=sys.stderr, flush=True)
        for words in outcome.get("wrong", ()):
            print(f"  WRONG: {words}", file=sys.stderr, flush=True)

    def broken(self) -> bool:
        """Whether a promise was broken in any of them."""
        return any(line.get("wrong") for line in read(self.path) if line["code"] == self.code)

    def figures(self) -> dict[str, float]:
        """Of all parts, with the seconds that they took."""
        lines = [line for line in read(self.path) if line["code"] == self.code]
        return added_up(lines) | {"seconds": round(sum(line["seconds"] for line in lines))}


def read(path: Path) -> list[Outcome]:
    """The lines of a results file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def added_up(lines: list[Outcome]) -> dict[str, float]:
    """FIGURES over several trials."""
    return {name: sum(line.get(name, 0) for line in lines) for name in FIGURES}


def code_digest() -> str:
    """SHA-256 over the tracked files of the code under test, as they are in the working tree."""
    whole = hashlib.sha256()
    for name in sorted(_git("ls-files", *UNDER_TEST).splitlines()):
        path = ROOT / name
        content = path.read_bytes() if path.exists() else b""
        whole.update(f"{name} {len(content)}\n".encode() + content)
    return whole.hexdigest()[:16]


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout
