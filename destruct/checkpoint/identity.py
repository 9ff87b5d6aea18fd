"""What a checkpoint belongs to, and whether this run may continue it."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from destruct.checkpoint import manifest
from destruct.checkpoint.store import CheckpointStore
from destruct.config.settings import Config, Settings
from destruct.errors import DestructError
from destruct.last_words import STARTED_AGAIN

DATA = "data digests"
CONFIG = "config digest"
RANKS = "ranks"
FORMAT = "format of the state"
"""Counted up where the state of before cannot be read any more."""


def find_checkpoint(settings: Settings, store: CheckpointStore, say: Callable[[str], None]) -> Path | None:
    """The verified checkpoint that `run.resume` asks for; None for `never`, and for `auto` where there is none yet.

    A run that is started again goes on from its own latest one, whatever it was started with; before the first of
    them it starts as it was asked to.

    Args:
        say: gets a line for each newer one that is damaged, and so is passed over.

    Raises:
        DestructError: there is none where it was said to be, or all are damaged, or `check_identity` refuses it.
    """
    resume = settings.config.run.resume
    again = store.topology.first_rank_makes(lambda: is_later_life(store.folder.parent))
    found = store.latest() if again or resume == "auto" else None
    if found is None and resume not in ("auto", "never"):
        found = store.named(Path(resume))
    if found is None:
        return None
    for line in found.passed_over:
        say(f"warning: {line}")
    check_identity(found.folder, found.facts, identity(settings))
    return found.folder


def is_later_life(folder: Path) -> bool:
    """Whether the run is started again, and an earlier life of it, of the same job, wrote its folder."""
    again = os.environ.get(STARTED_AGAIN)
    if again in (None, "1"):
        return again == "1"
    try:
        return json.loads((folder / "environment.json").read_text(encoding="utf-8"))["job"] == again
    except (OSError, ValueError, KeyError):
        return False


def check_identity(checkpoint: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to continue what another run has written.

    Sources may come and go: a source's keys count where it is in both.  Its prior is relative to those of the others,
    so it counts where all sources are the same.

    Args:
        before: the checkpoint's manifest.
        now: `identity` of this run.

    Raises:
        DestructError: a value differs, or no source is in both.
    """
    old, new = _sources(before), _sources(now)
    free = {f"data.sources.{name}.prior" for name in new} if old != new else set()
    free.add(RANKS)
    for key, here in now.items():
        counts = key not in free and _source_of(key) in {None, *old}
        if counts and before.get(key) != here:
            raise DestructError(
                f"{checkpoint} was written with {key} = {before.get(key)}; this is {here}",
                "resume with what it was written with, or give the run another run.name",
            )
    if not old & new:
        raise DestructError(
            f"{checkpoint} was trained on {', '.join(sorted(old))}, and data.sources has none of them",
            "keep at least one of them under its name, or give the run another run.name",
        )


def data_digests(checkpoint: Path) -> dict[str, str]:
    """What tells the texts that a checkpoint was trained on from others, by source."""
    return json.loads((checkpoint / manifest.NAME).read_text(encoding="utf-8"))[DATA]


def config_digest(config: Config) -> str:
    """SHA-256 of every value of the YAML, the defaults among them."""
    return hashlib.sha256(config.model_dump_json().encode()).hexdigest()


def written_by_ranks(checkpoint: Path) -> int:
    """How many ranks wrote a checkpoint."""
    return json.loads((checkpoint / manifest.NAME).read_text(encoding="utf-8"))[RANKS]


def check_data(checkpoint: Path, digests: dict[str, str]) -> None:
    """Refuse to continue on other texts of a source than those that the checkpoint was trained on.

    Args:
        digests: of each source of this run; a new one has no text to compare with.

    Raises:
        DestructError: the checkpoint's manifest has another one of a source.
    """
    before = data_digests(checkpoint)
    changed = [name for name, digest in digests.items() if before.get(name, digest) != digest]
    if changed:
        raise DestructError(
            f"{checkpoint} was trained on other texts than {', '.join(map(repr, changed))} "
            f"{'hold' if len(changed) > 1 else 'holds'} now",
            "give back the files (and the Python version) of that time, or give the run another run.name",
        )


def identity(settings: Settings) -> dict[str, Any]:
    """Dotted key -> value, as JSON; resuming with another value of one of these would be another run.

    But for the ranks, which may change.
    """
    config, training = settings.config, settings.training
    # Where the texts lie does not matter, since their digest is compared; nor how long a source is drawn from.
    free: dict[str, Any] = {
        "root": True,
        "cache": True,
        "cache_wait_s": True,
        "sources": {"__all__": _FREE_OF_A_SOURCE},
    }
    whole = config.model_dump(mode="json", include={"model", "data"}, exclude={"data": free})
    return {
        FORMAT: 3,
        RANKS: settings.world_size,
        "engine.backend": config.engine.backend,
        "bf16": training.bf16.enabled,
        "zero_optimization.stage": training.zero_optimization.stage,
        # The optimizer's state and beta are those of the checkpoint: another value here would change nothing.
        **dict(leaves(training.optimizer.model_dump(mode="json", exclude={"params": {"lr"}}), "optimizer")),
        "kl.coef": config.kl.coef,
        "kl.reference": config.kl.reference,
        "run.seed": config.run.seed,
        "rollout.mode": config.rollout.mode,
        "rollout.prompt_tokens": config.rollout.prompt_tokens,
        "rollout.response_tokens": config.rollout.response_tokens,
        "curriculum.strategy": config.curriculum.strategy,
        "curriculum.unit": config.curriculum.unit,
        **dict(leaves(whole["model"], "model")),
        **dict(leaves(whole["data"], "data")),
    }


_FREE_OF_A_SOURCE = {"path", "on_exhausted", "max_epochs"}
"""Keys of a source that may change from life to life of a run."""


def _sources(facts: dict[str, Any]) -> set[str]:
    return {name for name in map(_source_of, facts) if name is not None}


def _source_of(key: str) -> str | None:
    """The source whose key it is; None for all other keys."""
    found = re.match(r"data\.sources\.([^.]+)\.", key)
    return found and found[1]


def leaves(value: Any, dotted: str) -> Iterator[tuple[str, Any]]:
    """Dotted key -> value of nested dicts, `dotted` being the key of the whole."""
    if not isinstance(value, dict):
        yield dotted, value
        return
    for key, item in value.items():
        yield from leaves(item, f"{dotted}.{key}" if dotted else key)
