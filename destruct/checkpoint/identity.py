"""What a checkpoint belongs to, and whether this run may continue it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from destruct.checkpoint import manifest
from destruct.checkpoint.store import CheckpointStore
from destruct.config.settings import Settings
from destruct.errors import DestructError

DATA = "data digests"


def find_checkpoint(settings: Settings, store: CheckpointStore) -> Path | None:
    """The verified checkpoint that `run.resume` asks for; None for `never`, and for `auto` where there is none yet.

    Raises:
        DestructError: there is none where it was said to be, or it is damaged, or of another `identity`.
    """
    resume = settings.config.run.resume
    if resume == "never":
        return None
    found = store.latest() if resume == "auto" else store.named(Path(resume))
    if found is None:
        return None
    folder, facts = found
    for key, here in identity(settings).items():
        if facts.get(key) != here:
            raise DestructError(
                f"{folder} was written with {key} = {facts.get(key)}; this is {here}",
                "resume with what it was written with, or give the run another run.name",
            )
    return folder


def check_data(checkpoint: Path, digests: dict[str, str]) -> None:
    """Refuse to continue on other texts than those that the checkpoint was trained on.

    Args:
        digests: of each source of this run.

    Raises:
        DestructError: the checkpoint's manifest has others.
    """
    before = json.loads((checkpoint / manifest.NAME).read_text(encoding="utf-8")).get(DATA, {})
    changed = [name for name, digest in digests.items() if before.get(name) != digest]
    if changed:
        raise DestructError(
            f"{checkpoint} was trained on other texts than {', '.join(map(repr, changed))} "
            f"{'hold' if len(changed) > 1 else 'holds'} now",
            "give back the files (and the Python version) of that time, or give the run another run.name",
        )


def identity(settings: Settings) -> dict[str, Any]:
    """Dotted key -> value, as JSON; resuming with another value of one of these would be another run."""
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
        "ranks": settings.world_size,
        "engine.backend": config.engine.backend,
        "bf16": training.bf16.enabled,
        "zero_optimization.stage": training.zero_optimization.stage,
        # The optimizer's state and beta are those of the checkpoint: another value here would change nothing.
        **dict(_leaves(training.optimizer.model_dump(mode="json", exclude={"params": {"lr"}}), "optimizer")),
        "kl.coef": config.kl.coef,
        "kl.reference": config.kl.reference,
        "run.seed": config.run.seed,
        "rollout.mode": config.rollout.mode,
        "rollout.prompt_tokens": config.rollout.prompt_tokens,
        "rollout.response_tokens": config.rollout.response_tokens,
        "curriculum.strategy": config.curriculum.strategy,
        "the order of data.sources": list(config.data.sources),
        **dict(_leaves(whole["model"], "model")),
        **dict(_leaves(whole["data"], "data")),
    }


_FREE_OF_A_SOURCE = {"path", "on_exhausted", "max_epochs"}
"""Keys of a source that may change from life to life of a run."""


def _leaves(value: Any, dotted: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield dotted, value
        return
    for key, item in value.items():
        yield from _leaves(item, f"{dotted}.{key}")
