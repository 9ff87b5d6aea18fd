"""What a run is, for those that show it beside its figures."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from destruct.config.base import Section
from destruct.config.settings import Settings
from destruct.secrets import masked

TELLING = (
    "run.seed",
    "rollout.batch_size",
    "kl.coef",
    "kl.bound",
    "ppo.policy_lr",
    "ppo.value_lr",
    "ppo.epochs",
    "ppo.clip_range",
    "ppo.ptx_coef",
    "curriculum.strategy",
)
"""Keys that runs are compared by, whether or not they have their defaults."""

OF_THE_PLACE = ("run.name", "run.folder", "run.resume", "run.keep_checkpoints", "data.root", "data.cache", "wandb")
"""Keys and sections that say where a run is written and who sees it, and nothing of what it computes."""


@dataclass(frozen=True, slots=True)
class Facts:
    """A run before its first update, without the secrets of the environment."""

    name: str
    sources: tuple[str, ...]
    kl_bound: float  # nats per token
    config: dict[str, Any]  # every value, nested as in the YAML
    hyper_parameters: dict[str, bool | int | float | str]  # by dotted key: the telling ones, and what is no default


def facts_of(settings: Settings) -> Facts:
    """The facts of a run of these settings."""
    config = settings.config
    chosen = {key: _safe(value) for key, value in _leaves(config, "")}
    return Facts(
        name=config.run.name,
        sources=tuple(config.data.sources),
        kl_bound=config.kl.bound,
        config=_safe(config.model_dump(mode="json")),
        hyper_parameters={
            key: x if isinstance(x, bool | int | float) else _words(_safe(x)) for key, x in chosen.items()
        },
    )


def _leaves(section: Section, prefix: str) -> Iterator[tuple[str, Any]]:
    """Dotted key and value of what runs are compared by."""
    for name in type(section).model_fields:
        key, value = f"{prefix}{name}", getattr(section, name)
        if key in OF_THE_PLACE:
            continue
        if key == "data.sources":
            yield key, ", ".join(value)
        elif isinstance(value, Section):
            yield from _leaves(value, f"{key}.")
        elif key in TELLING or section.changed(name):
            yield key, value


def _safe(value: Any) -> Any:
    """The same, without the secrets of the environment in its texts."""
    if isinstance(value, dict):
        return {key: _safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_safe(item) for item in value]
    return masked(value) if isinstance(value, str) else value


def _words(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
