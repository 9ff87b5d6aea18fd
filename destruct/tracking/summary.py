"""What a run leaves behind in figures: `summary.json` and the table on the screen."""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Summary:
    """The end of a run.  Losses are by source, with `mean` over the learnable ones, of the sources of that time."""

    validation_loss_before: dict[str, float]  # nats per token, before the warm-up
    validation_loss_after_warmup: dict[str, float]
    validation_loss_after: dict[str, float]  # the newest in PPO
    best_update: int | None  # updates behind the checkpoint that `best` names; null when none was saved
    best_validation_loss: float  # its mean, nats per token
    # Score without the KL penalty, reward units, mean per source and then over sources,
    reward_before: float  # in the first tenth of the updates
    reward_after: float  # and in the last
    kl_max: float  # largest k3(policy || reference) after an update, nats per token
    kl_bound: float  # the constraint on it
    kl_from_initial: float  # k3(model that PPO began from || policy) at the end, nats per token
    kl_breaches: int  # updates that ended beyond it
    updates: int
    rounds: int
    significant_rounds: dict[str, int]  # by source, rounds with progress beyond two standard errors
    weights: dict[str, float]  # by source, share of drawn tokens at the end
    tokens: int  # drawn window tokens and sampled tokens, warm-up included
    skipped_steps: int  # optimizer steps dropped because a loss was not finite
    seconds: float  # of training, before a resume included
    seconds_to_first_step: float  # from the start of the last process to its first optimizer step
    world_size: int
    peak_rss_mib: float  # resident memory of the largest rank
    seed: int
    files: dict[str, str]  # what else the run left -> where, or how to see it

    @property
    def finals(self) -> dict[str, float]:
        """The figures by which runs are compared: reward units, and nats per token."""
        return {
            "reward": self.reward_after,
            "validation_loss": self.validation_loss_after["mean"],
            "best_validation_loss": self.best_validation_loss,
            "kl_max": self.kl_max,
            "kl_from_initial": self.kl_from_initial,
        }

    def save(self, path: Path) -> None:
        """Write JSON, with null for nan and the infinities."""
        content = null_unless_finite(dataclasses.asdict(self))
        path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def null_unless_finite(value: Any) -> Any:
    """A nested structure with None for each number that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: null_unless_finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
