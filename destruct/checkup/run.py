"""The config that a run is to be started with: whether it is right, fits, and what it needs of the machine."""

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import torch

from destruct.checkup.finding import Finding, of_error, ok, warn
from destruct.checkup.hub import Repository
from destruct.config.settings import Settings, load, read_config
from destruct.errors import DestructError
from destruct.planning.disk import plan_disk
from destruct.planning.hardware import HARDWARE
from destruct.planning.here import memory_warning
from destruct.planning.job import job_of
from destruct.tracking.weights_and_biases import check


def read(path: Path, overrides: list[str], ranks: int) -> Settings:
    """The settings of a run at so many ranks.

    Raises:
        DestructError: they are refused.
    """
    settings = load(path, overrides, ranks)
    settings.offload_folders()
    return settings


def backend_of(path: Path | None, overrides: list[str]) -> str | None:
    """Its engine.backend, before it is known how many ranks there are; None where it cannot be read."""
    try:
        return None if path is None else read_config(path, overrides)[0].engine.backend
    except DestructError:
        return None  # `read` will say why


def fits(settings: Settings, ranks: int, device: tuple[str, int] | None) -> Iterator[Finding]:
    """Whether the plan says that it fits the memory of this machine.

    Args:
        device: name and bytes of a rank's GPU; None where there is none.
    """
    words = memory_warning(settings, ranks, device)
    if words is None:
        yield ok("config", f"right for {ranks} rank(s)")
    else:
        yield warn("config", words.removeprefix("warning: "), "destruct plan says what takes how much")


def weights_and_biases(settings: Settings | None) -> Iterator[Finding]:
    """Whether Weights & Biases, where the config asks for it, is installed and has a key."""
    if settings is None:
        return
    try:
        mode = check(settings.config.wandb)
    except DestructError as error:
        yield of_error("wandb", error)
    else:
        if mode != "disabled":
            yield ok("wandb", f"wandb {version('wandb')}, {mode}")


def needs_triton(settings: Settings | None) -> bool:
    """Whether the run compiles a kernel of ours at its first use."""
    return settings is not None and torch.cuda.is_available() and settings.config.engine.loss in ("auto", "triton")


def needs_a_compiler(settings: Settings | None) -> str | None:
    """What of the run compiles C++ at its first use, and has nothing else to fall back on; None for nothing."""
    if settings is None or settings.config.engine.backend != "deepspeed":
        return None
    return None if settings.training.optimizer.params.torch_adam else "DeepSpeed's own Adam (torch_adam: false)"


def disk_needed(settings: Settings | None, ranks: int) -> int | None:
    """Bytes of the checkpoints that are kept; None where the sizes of a network are not known."""
    if settings is None:
        return None
    try:
        return plan_disk(job_of(settings, HARDWARE["cpu"], ranks), 1.0).kept
    except DestructError:
        return None


def taken_from_the_hub(settings: Settings | None) -> list[Repository]:
    """Models and data sets of the hub."""
    if settings is None:
        return []
    model, data = settings.config.model, settings.config.data
    named = [("model.policy.path", model.policy), ("model.value.path", model.value)]
    wanted = [
        Repository(key, "model", shape.path, shape.revision)
        for key, shape in named
        if shape.path is not None and not Path(shape.path).exists()
    ]
    for name, source in data.sources.items():
        if source.hub is not None and data.root is None:
            wanted.append(Repository(f"data.sources.{name}.hub", "dataset", source.hub, source.revision))
    return wanted
