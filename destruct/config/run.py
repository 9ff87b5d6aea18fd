"""The run's name, place, length and intervals."""

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
    """Updates of one epoch, which ends with a validation and a checkpoint; by default the pieces of all sources divided
    by those of an update.  A streaming source needs it."""
    checkpoint_every: int = Field(0, ge=0)
    """Updates between checkpoints, in the warm-up steps; 0: only at the ends of epochs, and when a validation was the
    best so far."""
    keep_checkpoints: int = Field(2, ge=1)
    """How many of the newest checkpoints are kept; the best one stays besides."""
    evaluate_every: int = Field(0, ge=0)
    """Updates between validations; 0: only before and after the warm-up and at the ends of epochs."""
    validation_windows: int = Field(64, ge=1)
    """Held-out windows per source of a validation."""
    samples_per_update: int = Field(2, ge=0)
    """Rollouts of each update written to samples.jsonl."""
    resume: str = Field("never", min_length=1)
    """`never` starts anew and puts an older folder of the same name aside; `auto` continues from the latest checkpoint
    of the run's folder, if there is one; a path continues from there: a checkpoint, a pointer `latest` or `best`, or a
    run's folder. `--resume` says the same."""
