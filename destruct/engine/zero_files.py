"""What is in a file of a network's checkpoint, ZeRO's flat shards cut into the parameters that they are made of."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

LAYOUTS = {
    "fp32_flat_groups": "optimizer_state_dict",
    "single_partition_of_fp32_groups": "base_optimizer_state",
}
"""Of stage 3, and of stages 1 and 2: where a rank's float32 weights are -> where the optimizer's state is."""

Pieces = dict[str, slice]  # by the parameter: where it lies in a flat tensor


def read_saved(path: Path) -> Any:
    """A file that DeepSpeed or torch.save wrote: nested values, with tensors that are mapped and not read yet.

    A rank's flat float32 weights, and its moments, are given as mappings from the parameter to its part of them; what
    only fills them up at the end is left out.

    Args:
        path: verified, since it is unpickled.
    """
    saved = torch.load(path, map_location="cpu", weights_only=False, mmap=True)
    zero = saved.get("optimizer_state_dict") if isinstance(saved, dict) else None
    for weights, optimizer in LAYOUTS.items():
        if isinstance(zero, dict) and weights in zero and optimizer in zero:
            pieces = _pieces(path, zero, zero[weights])
            states = zero[optimizer]["state"]
            for group, inside in enumerate(pieces):
                states[group] = {name: _cut(flat, inside) for name, flat in states.get(group, {}).items()}
            zero[weights] = [_cut(flat, inside) for flat, inside in zip(zero[weights], pieces, strict=True)]
    return saved


def _pieces(path: Path, zero: dict[str, Any], flat: list[Tensor]) -> list[Pieces]:
    """Of each flat tensor of a rank."""
    if "param_slice_mappings" in zero:
        groups: list[Mapping[str, Any]] = zero["param_slice_mappings"]
        return [{name: slice(at.start, at.start + at.numel) for name, at in group.items()} for group in groups]
    # Stage 3 has the parameters' shapes in the rank's other file.
    beside = path.with_name(path.name.removeprefix("bf16_").replace("optim_states", "model_states"))
    model = torch.load(beside, map_location="cpu", weights_only=False, mmap=True)
    parameters = iter([item for group in model["param_shapes"] for item in group.items()])
    return [dict(_shards(parameters, len(whole), zero["partition_count"])) for whole in flat]


def _shards(parameters: Iterator[tuple[str, torch.Size]], length: int, ranks: int) -> Iterator[tuple[str, slice]]:
    """Those of the next parameters that fill `length` elements; each rank has as many of one, padding included."""
    start = 0
    while start < length:
        name, shape = next(parameters)
        end = start + -(-shape.numel() // ranks)
        yield name, slice(start, end)
        start = end


def _cut(flat: Any, pieces: Pieces) -> Any:
    """A flat tensor's parts; the count of steps is left as it is, and so is a tensor whose weights lie elsewhere."""
    if not isinstance(flat, Tensor) or flat.ndim == 0 or not pieces:
        return flat
    return {name: flat[piece] for name, piece in pieces.items()}
