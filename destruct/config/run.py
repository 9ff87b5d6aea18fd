"""The run's name, place, length and intervals."""

from typing import Literal

from pydantic import Field

from destruct.config.base import Section


class RunConfig(Section):
    """The run's name, place, length and intervals."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")
    """Folder of the run under `folder`."""
    folder: str = Field("runs", min_length=1)
    """Where run folders are made."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Every random choice is addressed by it; equal seeds give equal runs at the same world size and backend."""
    num_epochs: int = Field(1, ge=1)
    """Epochs of PPO."""
    updates_per_epoch: int | None = Field(None, ge=1)
    """Updates of one epoch; by default the tokens of all sources divided by the window tokens of an update."""
    checkpoint_every: int = Field(0, ge=0)
    """Updates between checkpoints; 0: only at the end of the run."""
    keep_checkpoints: int = Field(2, ge=1)
    """How many of the newest checkpoints are kept."""
    evaluate_every: int = Field(0, ge=0)
    """Updates between validations; 0 validates before, after warm-up and at the end."""
    validation_windows: int = Field(64, ge=1)
    """Held-out windows per source of a validation."""
    samples_per_update: int = Field(2, ge=0)
    """Rollouts of each update written to samples.jsonl."""
    resume: Literal["never", "auto"] = "never"
    """`auto` continues from the newest checkpoint of the run's folder; `never` starts anew and puts an older
    folder of the same name aside."""
