"""The implementations of the fused ops, by name."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

import torch

from destruct.ops.rows import LossOutput, ScoreOutput


@dataclass(frozen=True, slots=True)
class Implementation:
    """One implementation; its two ops give bitwise equal logprobs on the same rows, where asked for `as_trained`."""

    policy_loss: Callable[..., LossOutput]  # arguments as `reference.policy_loss`
    score: Callable[..., ScoreOutput]  # arguments as `reference.score`
    rows_per_chunk: Callable[..., int]  # (vocab, dtype, mib or None): its own choice, of so many MiB or its own default


DATA_CENTRE = ((8, 0), (9, 0), (10, 0))
"""Compute capabilities (A100, H100 and H200, B200) whose blocks can have the 144 to 192 KiB of shared memory that the
scoring product of triton takes; graphics cards have about 99."""


def fastest(device: torch.device) -> str:
    """The name of the fastest implementation that runs on `device`."""
    if device.type != "cuda" or torch.version.hip is not None or find_spec("triton") is None:
        return "chunked"
    return "triton" if torch.cuda.get_device_capability(device) in DATA_CENTRE else "chunked"


def implementation(name: str) -> Implementation:
    """The implementation called `name`.

    Raises:
        ValueError: naming the known ones, or the package that this one needs.
    """
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"implementation is {name!r}; expected one of {tuple(IMPLEMENTATIONS)}")
    try:
        module = import_module(IMPLEMENTATIONS[name])
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise ValueError(f"implementation is {name!r}; the package triton is not installed, so use 'chunked'") from None
    return Implementation(module.policy_loss, module.score, module.rows_per_chunk)


IMPLEMENTATIONS = {
    "reference": "destruct.ops.reference",
    "chunked": "destruct.ops.chunked",
    "triton": "destruct.ops.fused_triton",
}
"""Their modules, imported when asked for: not every machine has what each of them needs."""
