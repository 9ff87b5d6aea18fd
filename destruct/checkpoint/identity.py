"""What a checkpoint belongs to, and whether this run may continue it."""

from pathlib import Path
from typing import Any

from destruct.checkpoint.store import CheckpointStore
from destruct.config.settings import Settings
from destruct.errors import DestructError


def find_checkpoint(settings: Settings, store: CheckpointStore) -> Path | None:
    """The verified newest checkpoint of the run's folder; None when not resuming or none is there.

    Raises:
        DestructError: it is damaged, or of another `identity`.
    """
    if settings.config.run.resume == "never":
        return None
    found = store.latest()
    if found is None:
        return None
    folder, manifest = found
    for key, here in identity(settings).items():
        if manifest.get(key) != here:
            raise DestructError(
                f"{folder} was written with {key} = {manifest.get(key)}; this is {here}",
                "resume with what it was written with, or give the run another run.name",
            )
    return folder


def identity(settings: Settings) -> dict[str, Any]:
    """Dotted key -> value, as JSON; resuming with another value of one of these would be another run."""
    config, training = settings.config, settings.training
    whole = config.model_dump(mode="json")
    return {
        "ranks": settings.world_size,
        "engine.backend": config.engine.backend,
        "bf16": training.bf16.enabled,
        "zero_optimization.stage": training.zero_optimization.stage,
        # The optimizer's state and beta are those of the checkpoint: another value here would change nothing.
        "optimizer": training.optimizer.model_dump(mode="json", exclude={"params": {"lr"}}),
        "kl.coef": config.kl.coef,
        "run.seed": config.run.seed,
        "rollout.prompt_tokens": config.rollout.prompt_tokens,
        "rollout.response_tokens": config.rollout.response_tokens,
        "curriculum.strategy": config.curriculum.strategy,
        **{f"model.{role}.{key}": value for role, shape in whole["model"].items() for key, value in shape.items()},
        "the order of data.sources": list(config.data.sources),
        **{f"data.{key}": value for key, value in whole["data"].items()},
    }
