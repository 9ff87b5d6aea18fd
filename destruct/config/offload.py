"""Where DeepSpeed's JSON files let sharded tensors rest: on the device, in the host's memory, in files."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from destruct.config.base import Section
from destruct.errors import DestructError
from destruct.exits import Exit


class Offload(Section):
    """Where a sharded tensor rests."""

    device: Literal["cpu", "nvme", "none"] = "none"
    """`cpu`: in the host's memory, fetched when needed; `nvme`: in files, of which the host's memory holds what it has
    room for (stage 3)."""
    pin_memory: bool = False
    """Page-locked host memory: faster copies to a GPU, memory that cannot be swapped."""
    nvme_path: str | None = Field(None, min_length=1)
    """`nvme`: a folder on a fast local disk (a tmpfs is memory), in which each rank has files without a name, which are
    gone with it; `~` and `$VARIABLES` are those of each rank."""

    @model_validator(mode="after")
    def _files_have_a_folder(self) -> Self:
        if self.device == "nvme" and self.nvme_path is None:
            raise ValueError('device = "nvme" names no folder; set nvme_path to one on a fast local disk')
        if self.device != "nvme" and self.nvme_path is not None:
            raise ValueError(f'nvme_path does nothing with device = "{self.device}"; write "nvme", or leave it out')
        if self.device == "nvme" and self.pin_memory:
            raise ValueError("pin_memory does nothing for files, which are never locked in memory; leave it out")
        return self


@dataclass(frozen=True, slots=True)
class OffloadFolders:
    """The folders of what rests in files; None for what does not."""

    weights: Path | None = None
    states: Path | None = None  # master weights, the optimizer's state, gradients
    frozen: Path | None = None


IN_MEMORY = OffloadFolders()
"""Nothing rests in files."""


def offload_folders(weights: Offload | None, states: Offload | None, frozen: Offload | None) -> OffloadFolders:
    """The folders of this rank, each tried.

    Args:
        weights, states: `offload_param` and `offload_optimizer` of the training engines.
        frozen: `offload_param` of the frozen engine.

    Raises:
        DestructError: a variable is not set, or a folder is missing or takes no file.
    """
    return OffloadFolders(*(_usable(offload) for offload in (weights, states, frozen)))


def _usable(offload: Offload | None) -> Path | None:
    if offload is None or offload.nvme_path is None:
        return None
    name = os.path.expanduser(os.path.expandvars(offload.nvme_path))
    if not os.path.isabs(name):
        raise DestructError(
            f"nvme_path = {offload.nvme_path} is {name!r} on this machine, which is no absolute path",
            "export its variables on every machine, or write the folder into the DeepSpeed JSON",
            Exit.ENVIRONMENT,
        )
    try:
        tempfile.TemporaryFile(dir=name).close()
    except (OSError, ValueError) as error:
        raise DestructError(
            f"nvme_path = {name} takes no files: {getattr(error, 'strerror', error)}",
            "name a folder on a fast local disk of every machine that this user may write to",
            Exit.ENVIRONMENT,
        ) from None
    return Path(name)


def of_deepspeed(zero: dict[str, Any]) -> dict[str, Any]:
    """A `zero_optimization` block as DeepSpeed gets it: what rests in files is to it in the host's memory."""
    for name in ("offload_param", "offload_optimizer"):
        if offload := zero.get(name):
            device = "cpu" if offload["device"] == "nvme" else offload["device"]
            zero = zero | {name: {"device": device, "pin_memory": offload["pin_memory"]}}
    return zero
