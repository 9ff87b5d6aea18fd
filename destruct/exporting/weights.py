"""The policy's float32 weights in a checkpoint, one parameter at a time, whichever backend and ranks wrote them.

No engine is made, no process group, and nothing goes to a GPU: files are mapped, and a parameter is put together from
its shards when it is asked for.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from destruct.engine.fsdp import SavedTensors
from destruct.engine.zero_files import LAYOUTS, read_saved
from destruct.errors import DestructError
from destruct.exits import Exit
from destruct.exporting.source import POLICY, Source

Shapes = Mapping[str, torch.Size]  # of each parameter by its name in the policy's network, in the network's order
Read = Callable[[str], Tensor]  # a parameter by that name, whole and on the CPU


def reader(source: Source, shapes: Shapes) -> Read:
    """What reads the weights of a verified checkpoint.

    Args:
        source: the policy's weights are float32 masters; copies are in the dtype of the run.

    Raises:
        DestructError: the checkpoint does not hold these parameters.
    """
    folder = source.checkpoint / source.role
    with _there(folder):
        names, read = _copy(folder) if source.role != POLICY else READERS[source.backend](folder, shapes)
    if lost := [name for name in shapes if name not in names]:
        raise _misfit(folder, f"has no {lost[0]}")

    def whole(name: str) -> Tensor:
        with _there(folder):
            tensor = read(name)
        if tensor.shape != shapes[name]:
            raise _misfit(folder, f"has {name} of shape {tuple(tensor.shape)}, and not {tuple(shapes[name])}")
        return tensor

    return whole


@contextmanager
def _there(folder: Path) -> Iterator[None]:
    """A run that goes on deletes its old checkpoints, perhaps in the midst of this."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise DestructError(
            f"{folder} cannot be read: {getattr(error, 'strerror', None) or error}",
            "where its run has gone on and deleted it, name a newer checkpoint",
            Exit.ENVIRONMENT,
        ) from error


def _misfit(folder: Path, what: str) -> DestructError:
    return DestructError(
        f"{folder} {what}, which the model of its run's resolved.yaml has",
        "where model.policy.path was changed since the run, put back what was there",
    )


def _copy(folder: Path) -> tuple[set[str], Read]:
    file = safe_open(folder / "model.safetensors", "pt")
    return set(file.keys()), file.get_tensor


def _single(folder: Path, shapes: Shapes) -> tuple[set[str], Read]:
    masters = torch.load(folder / "state.pt", map_location="cpu", weights_only=True, mmap=True)["masters"]
    found = dict(zip(shapes, masters, strict=False))  # a list, in the order of the network
    return set(found), lambda name: found[name].detach()


def _fsdp(folder: Path, shapes: Shapes) -> tuple[set[str], Read]:
    saved = SavedTensors(folder)
    names = {name.removeprefix("weights.") for name in saved.names if name.startswith("weights.")}
    return names, lambda name: saved.tensor(f"weights.{name}")


def _deepspeed(folder: Path, shapes: Shapes) -> tuple[set[str], Read]:
    """From the flat shards of ZeRO 1 to 3: a parameter is what the ranks have of it, one after the other, less what
    ZeRO-3 fills the last of them up with.  Without ZeRO every rank has all of the network, and the first one saves it.
    """
    files = sorted(folder.glob("*_optim_states.pt"), key=_rank)
    if not files:
        module = read_saved(folder / "mp_rank_00_model_states.pt")["module"]
        return set(module), lambda name: module[name].detach()
    pieces: dict[str, list[Tensor]] = defaultdict(list)
    for path in files:
        for name, piece in _masters(read_saved(path)["optimizer_state_dict"]):
            pieces[name].append(piece.detach())

    def read(name: str) -> Tensor:
        flat, shape = torch.cat(pieces[name]), shapes[name]
        return flat[: shape.numel()].view(shape) if len(flat) >= shape.numel() else flat

    return set(pieces), read


def _rank(path: Path) -> int:
    found = re.search(r"pp_rank_(\d+)_", path.name)
    return int(found[1]) if found else 0


def _masters(zero: dict[str, Any]) -> list[tuple[str, Tensor]]:
    """A rank's part of each weight."""
    weights = next(name for name in LAYOUTS if name in zero)
    return [item for group in zero[weights] for item in group.items()]


READERS: dict[str, Callable[[Path, Shapes], tuple[set[str], Read]]] = {
    "deepspeed": _deepspeed,
    "fsdp": _fsdp,
    "single": _single,
}
"""What reads the checkpoints of each `engine.backend`: the names in them, and one tensor by its name."""
