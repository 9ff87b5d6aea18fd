"""What a run wrote down of itself: where a crash or a person left it damaged, without what cannot be told."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from destruct.exporting.source import RESOLVED, TRAINING, Source, reading
from destruct.secrets import masked

SUMMARY, ENVIRONMENT, METRICS = "summary.json", "environment.json", "metrics.jsonl"


def environment(run: Path) -> dict[str, Any]:
    """What a run was made on; empty where that is not known."""
    return _mapping(run / ENVIRONMENT)


def summary(source: Source) -> dict[str, Any]:
    """Figures of the whole run; empty where it did not end with this checkpoint."""
    found = _mapping(source.run / SUMMARY)
    return found if found.get("updates") == source.state.update else {}


def newest_figures(source: Source, names: tuple[str, ...]) -> dict[str, float]:
    """Of some metrics of PPO what the log says last before the checkpoint was written."""
    found: dict[str, float] = {}
    for line in _lines(source.run / METRICS):
        try:
            figures = json.loads(line)
            if figures["phase"] == "ppo" and figures["step"] < source.state.update:
                found |= {name: figures[name] for name in names if isinstance(figures.get(name), int | float)}
        except (ValueError, KeyError, TypeError):
            continue
    return {name: found[name] for name in names if name in found}


def settings(source: Source) -> dict[str, bytes]:
    """Files that a person needs to make the run again, by their paths in the exported folder; no logs, no samples.

    Raises:
        DestructError: one of them cannot be read.
    """
    names = [RESOLVED, "deepspeed.json", ENVIRONMENT, *([SUMMARY] if summary(source) else [])]
    there = {name: source.run / name for name in names if (source.run / name).is_file()}
    return {f"{TRAINING}/{name}": masked(_text(path)).encode() for name, path in there.items()}


def tokenizer(run: Path) -> dict[str, bytes]:
    """Files of a run's tokenizer, by their paths in the exported folder.

    Raises:
        DestructError: one of them cannot be read.
    """
    found = {}
    for path in sorted((run / "tokenizer").rglob("*")):
        if path.is_file():
            with reading(path):
                found[path.relative_to(run / "tokenizer").as_posix()] = path.read_bytes()
    return found


def _mapping(path: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing where it is not there, or no mapping."""
    try:
        content = json.loads(_text(path)) if path.is_file() else {}
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _lines(path: Path) -> Iterator[str]:
    if path.is_file():
        with reading(path), path.open(encoding="utf-8", errors="replace") as file:
            yield from file


def _text(path: Path) -> str:
    with reading(path):
        return path.read_text(encoding="utf-8", errors="replace")
