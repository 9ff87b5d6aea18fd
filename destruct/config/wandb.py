"""Weights & Biases."""

from typing import Literal

from pydantic import Field

from destruct.config.base import Section


class WandbConfig(Section):
    """Weights & Biases, beside the files of the run's folder; it needs `pip install -e '.[wandb]'` in the checkout."""

    mode: Literal["disabled", "offline", "online"] = "disabled"
    """`offline` writes below the run's folder what `wandb sync` sends later.  Where this is not disabled, WANDB_MODE of
    the environment counts instead; WANDB_NAME, WANDB_NOTES, WANDB_BASE_URL and the others mean what they always do."""
    project: str | None = Field(None, min_length=1)
    """By default WANDB_PROJECT, or else `destruct`."""
    entity: str | None = Field(None, min_length=1)
    """The user or team; by default WANDB_ENTITY, or else that of the account."""
    group: str | None = Field(None, min_length=1)
    """Under which runs stand together; by default WANDB_RUN_GROUP."""
    tags: tuple[str, ...] = Field((), strict=False)
    """By default WANDB_TAGS, with commas between them."""
