"""Folders of runs as they stand on a disk, for what reads them: figures that are known, texts that are hostile."""

import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from destruct.config.base import dump_with_provenance
from destruct.config.settings import read_config
from destruct.tracking.metrics import check_name
from tests.tiny import write_config

SOURCES = ("arithmetic", "noise")
HOSTILE = "</pre><script>alert('x')</script>&amp; \x1b[31m red \u202eback\x00 \ud83d\ude00 é\u2028"
VOID = ("meta", "link", "br")


def update(step: int, **changes: Any) -> dict[str, Any]:
    """A line of an update, of which every figure follows from its number."""
    figures = {
        "ppo/policy_loss": -0.01 * math.sin(step),
        "ppo/value_loss": 0.2 / (1 + step),
        "ppo/ptx_loss": 4 - step / 50,
        "ppo/entropy": 3 + math.cos(step / 5),
        "ppo/explained_variance": 1 - 2 / (1 + step),
        "ppo/clip_fraction": 0.1,
        "ppo/policy_grad_norm": 1.0,
        "ppo/value_grad_norm": 0.5,
        "ppo/steps": 4,
        "ppo/steps_planned": 4,
        "ppo/skipped": 0,
        "kl/to_reference": 0.02 + 0.01 * math.sin(step / 3),
        "kl/coef": 0.05,
        "kl/breaches": 0,
        "rollout/reward": 0.25 + step / 1000,
        "rollout/reward/arithmetic": 0.5 + step / 1000,
        "rollout/reward/noise": 0.125,
        "rollout/term/eos": 0.5,
        "rollout/response_tokens": 8.0,
        "time/generate": 1.5,
        "time/update": 2.5,
        "time/tokens_per_s": 1000.0 + step,
        "memory/peak_rss_mib": 900.0,
    } | changes
    return _line("ppo", step, figures)


def round_of(step: int, index: int, weights: dict[str, float], error: float | None = 0.03) -> dict[str, Any]:
    """A line of a round."""
    figures: dict[str, Any] = {"curriculum/round": index}
    for k, (name, weight) in enumerate(weights.items()):
        figures |= {
            f"curriculum/weight/{name}": weight,
            f"curriculum/difficulty/{name}": 5.0 + k - index / 10,
            f"curriculum/difficulty_se/{name}": error,
        }
    return _line("ppo", step, figures)


def validation(phase: str, step: int, losses: dict[str, float]) -> dict[str, Any]:
    """A line of a validation."""
    figures = {f"validation/nats_per_token/{name}": x for name, x in losses.items()}
    figures |= {f"validation/bits_per_byte/{name}": x / 2 for name, x in losses.items()}
    return _line(phase, step, figures | {"validation/mean": sum(losses.values()) / len(losses)})


def _line(phase: str, step: int, figures: dict[str, Any]) -> dict[str, Any]:
    for name in figures:
        check_name(name)
    return {"phase": phase, "step": step, **figures}


def lines(updates: int, every: int = 2) -> list[dict[str, Any]]:
    """The log of a run with a validation before, after the warm-up and at the end."""
    found = [validation("before", 0, {"arithmetic": 6.0, "noise": 7.0})]
    found += [_line("warmup", k, {"warmup/lm_loss": 6 - k / 10}) for k in range(4)]
    found.append(validation("after_warmup", 4, {"arithmetic": 5.0, "noise": 6.5}))
    for step in range(updates):
        if step % every == 0:
            share = 0.5 + 0.3 * step / max(updates, 1)
            found.append(round_of(step, step // every, {"arithmetic": share, "noise": 1 - share}))
        found.append(update(step))
    if updates:
        found.append(validation("ppo", updates - 1, {"arithmetic": 4.5, "noise": 6.25}))
    return found


def sample(step: int, source: str, reward: float, text: str = HOSTILE) -> dict[str, Any]:
    """A line of a rollout."""
    texts = {"prompt": f"p{step} {text}", "response": f"r{step} {text}", "continuation": "c"}
    return {"update": step, "source": source, **texts, "stopped": True, "reward": reward, "terms": {"eos": reward}}


def said(phase: str, step: int, response: str) -> dict[str, Any]:
    """A line of a prompt's continuation."""
    return {"phase": phase, "update": step, "topic": "code", "prompt": "def f():", "response": response}


SAMPLES = [
    said("before", 0, "junk"),
    said("after_warmup", 4, "words"),
    *(sample(step, source, 0.1 * step) for step in range(6) for source in SOURCES),
    said("ppo", 5, "sense"),
]


def made(
    folder: Path,
    name: str,
    log: list[dict[str, Any]],
    samples: list[dict[str, Any]] | None = None,
    overrides: tuple[str, ...] = (),
) -> Path:
    """The folder of a run that wrote these lines, with the settings of `tests.tiny`."""
    config, provenance = read_config(write_config(folder, name), ["engine.backend=single", *overrides])
    run = folder / name
    run.mkdir()
    (run / "resolved.yaml").write_text(dump_with_provenance(config, provenance), encoding="utf-8")
    here = {"commit": "abc123+", "world_size": 2, "device": "cpu", "python": "3.11", "packages": {"torch": "2.13.0"}}
    (run / "environment.json").write_text(json.dumps(here))
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    (run / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in samples or []))
    return run


class Page(HTMLParser):
    """A page taken apart: tags that do not close, ids, attributes, tables by their names, texts by their classes."""

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.html = html
        self.faults: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []  # tag, name, value
        self.tables: dict[str, list[list[str]]] = {}
        self.texts: list[str] = []
        self._open: list[str] = []
        self._rows: list[list[str]] = []
        self.feed(html)
        self.close()
        self.faults += [f"<{tag}> is never closed" for tag in self._open]
        ids = [value for _, name, value in self.attributes if name == "id"]
        self.faults += [f"id {value} is there twice" for value in set(ids) if ids.count(value) > 1]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self._rows = self.tables.setdefault(dict(attrs).get("aria-label") or "", [])
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.faults.append(f"</{tag}> at {self.getpos()} closes nothing, or something else")

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if {"td", "th"} & set(self._open[-2:]):
            self._rows[-1][-1] += data

    @property
    def text(self) -> str:
        """All words, with single spaces."""
        return " ".join(" ".join(self.texts).split())
