"""The finished runs of the curriculum benchmark: a file of one JSON line a run, tracked, and never written anew.

A run's key is a digest of its settings (the curriculum's section with its defaults among them) and the commit of the
code that it depends on, with `+` and a digest of that code where it is not as committed.
"""

import hashlib
import json
import os
import platform
import subprocess
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.curriculum_settings import BARE, Settings

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "bench" / "curriculum_results.jsonl"
CODE = (
    *(f"bench/curriculum_{name}.py" for name in ("run", "sources", "known", "grammar")),
    *(f"destruct/data/{name}.py" for name in ("mixture", "order", "shares", "embedded", "stdlib_text")),
    *(f"destruct/{name}.py" for name in ("batch", "seeding", "warmup", "evaluation", "engine/single")),
    "destruct/models",
    "destruct/ops",
)
"""What every run depends on: what it reads, draws, trains and measures with."""
PACKAGES = ("torch", "transformers", "numpy")
"""Whose versions are part of a key, with Python's, whose library is the text."""
CURRICULUM = ("destruct/curriculum", "destruct/build.py")
"""What moves the weights: runs of equal weights do without."""
OF_ROUNDS = ("overrides", "panel_size", "panel_windows", "warmup_tokens", "round_tokens")
"""Settings that mean nothing where there are no rounds."""


def key(settings: Settings) -> str:
    """What a finished run is found by, e.g. `3f9a1c0b7d2e@1a2b3c4`."""
    depends, paths = asdict(settings), CODE
    if settings.strategy in BARE:
        depends = {name: value for name, value in depends.items() if name not in OF_ROUNDS}
    else:
        depends["config"], paths = settings.config().model_dump(mode="json"), (*CODE, *CURRICULUM)
    depends["versions"] = [platform.python_version(), *map(version, PACKAGES)]
    digest = hashlib.blake2b(json.dumps(depends, sort_keys=True).encode(), digest_size=6).hexdigest()
    return f"{digest}@{commit(paths)}"


def commit(paths: tuple[str, ...]) -> str:
    """The last commit of these paths of the repository, and what tells their present contents from it."""
    last = _git("log", "-1", "--format=%H", "--", *paths)[:12]
    if not _git("status", "--porcelain", "--", *paths):
        return last
    digest = hashlib.blake2b(digest_size=3)
    for name in sorted(set(_git("ls-files", "-co", "--exclude-standard", "--", *paths).splitlines())):
        contents = (ROOT / name).read_bytes() if (ROOT / name).is_file() else b""
        digest.update(f"{name} {len(contents)}\n".encode() + contents)
    return f"{last}+{digest.hexdigest()}"


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Key -> result of the finished runs; nothing where there is no file yet."""
    found = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            result = json.loads(line)
        except json.JSONDecodeError:
            continue  # a crash cut it off while it was written: that run is made again
        found[result["key"]] = result
    return found


def append(path: Path, name: str, result: dict[str, Any]) -> dict[str, Any]:
    """Add a finished run under its key, on the disk when this returns; returns it as `read` gives it."""
    kept = {"key": name, "commit": name.partition("@")[2], **result}
    line = json.dumps(kept, separators=(",", ":"))
    with path.open("a+b") as file:
        file.seek(0, os.SEEK_END)
        if file.tell():
            file.seek(-1, os.SEEK_END)
            # A line that a crash cut off must not take this one with it.
            line = line if file.read(1) == b"\n" else "\n" + line
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    return kept
