"""What two runs are compared by: everything that their checkpoints hold, and all that they wrote."""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from destruct.checkpoint import manifest

ROLES = ("policy", "value")
MACHINE = ("time/", "memory/")


def of_checkpoint(checkpoint: Path) -> str:
    """SHA-256 of every tensor, moment and number of a checkpoint, but for the seconds that its run took.

    Of contents, not of files: the same numbers are pickled in other bytes where one string is two objects.
    """
    whole = hashlib.sha256()
    for name in sorted(manifest.verify(checkpoint)[manifest.FILES]):
        path = checkpoint / name
        whole.update(f"{name}\n".encode())
        if name == "state.json":
            state = json.loads(path.read_text(encoding="utf-8")) | {"seconds": 0}
            whole.update(json.dumps(state, sort_keys=True).encode())
        elif path.suffix == ".pt":
            _add(whole, torch.load(path, map_location="cpu", weights_only=False))
        elif path.suffix != ".distcp" and path.name != ".metadata":
            whole.update(path.read_bytes())
    for weights in _of_dcp(checkpoint):
        _add(whole, weights)
    return whole.hexdigest()


def of_run(folder: Path, checkpoint: Path) -> str:
    """That of its checkpoint, and of the figures and samples that it wrote."""
    whole = [of_checkpoint(checkpoint), figures(folder)]
    whole.append((folder / "samples.jsonl").read_text(encoding="utf-8").splitlines())
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def figures(folder: Path) -> list[dict]:
    """A run's metrics, without those of the machine."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: x for key, x in line.items() if not key.startswith(MACHINE)} for line in lines]


def _of_dcp(checkpoint: Path) -> Iterator[object]:
    """What FSDP's ranks wrote, put together by torch's own converter."""
    for role in ROLES:
        if (checkpoint / role / ".metadata").exists():
            with tempfile.TemporaryDirectory() as scratch:
                dcp_to_torch_save(checkpoint / role, Path(scratch) / "whole.pt")
                yield torch.load(Path(scratch) / "whole.pt", weights_only=False)


def _add(whole: "hashlib._Hash", value: object) -> None:
    """Add a nested structure of tensors and numbers."""
    if isinstance(value, torch.Tensor):
        whole.update(f"{value.dtype} {tuple(value.shape)}\n".encode())
        whole.update(value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, dict):
        for key in sorted(value, key=repr):
            whole.update(repr(key).encode())
            _add(whole, value[key])
    elif isinstance(value, list | tuple):
        whole.update(f"{len(value)}\n".encode())
        for each in value:
            _add(whole, each)
    elif type(value).__module__.startswith("deepspeed"):
        _add(whole, vars(value))
    else:
        whole.update(repr(value).encode())
