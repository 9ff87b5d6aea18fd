"""Ranks, devices, and every collective that destruct itself calls."""

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from destruct.errors import DestructError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Topology:
    """This process's place among the ranks.  At world size 1 every collective is the identity."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """True on the one rank that writes files and speaks to the person."""
        return self.rank == 0

    def share(self, items: int) -> Tensor:
        """Indices (n,) int64 of this rank's share of `items`: rank, rank + world_size, ..."""
        return torch.arange(min(self.rank, items), items, self.world_size)

    def sum(self, x: Tensor) -> Tensor:
        """Sum over ranks, in float64 for floats so that the order of ranks does not show."""
        total = x.to(self.device, torch.float64 if x.is_floating_point() else torch.int64, copy=True)
        if self.world_size > 1:
            dist.all_reduce(total)
        return total

    def max(self, x: Tensor) -> Tensor:
        """Elementwise maximum over ranks."""
        top = x.to(self.device, copy=True)
        if self.world_size > 1:
            dist.all_reduce(top, dist.ReduceOp.MAX)
        return top

    def interleave(self, x: Tensor) -> Tensor:
        """Undo `share`: rank r's rows (n, ...) become rows r, r + world_size, ... of the result.

        Every rank must hold the same number of rows.
        """
        if self.world_size == 1:
            return x
        parts = [torch.empty_like(x) for _ in range(self.world_size)]
        dist.all_gather(parts, x.contiguous())
        return torch.stack(parts, 1).flatten(0, 1)

    def gather_flat(self, shard: Tensor) -> Tensor:
        """Concatenate equal flat shards (k,) of all ranks in rank order: (world_size * k,)."""
        if self.world_size == 1:
            return shard.clone()
        whole = torch.empty(self.world_size * shard.numel(), dtype=shard.dtype, device=shard.device)
        dist.all_gather(list(whole.chunk(self.world_size)), shard)
        return whole

    def first_rank_makes(self, make: Callable[[], T]) -> T:
        """Call `make` on the first rank and hand its (picklable) result to all; its exception too."""
        if self.world_size == 1:
            return make()
        box: list[tuple[bool, T | Exception] | None] = [None]
        if self.is_first:
            try:
                box[0] = (True, make())
            except Exception as error:
                box[0] = (False, error)
        dist.broadcast_object_list(box, src=0)
        assert box[0] is not None
        made, result = box[0]
        if not made:
            raise result  # type: ignore[misc]
        return result  # type: ignore[return-value]

    def together(self, make: Callable[[], T]) -> T:
        """Call `make` on every rank, each for itself; where it raises a DestructError on one, it is raised on all."""
        result: T | None = None
        error: DestructError | None = None
        try:
            result = make()
        except DestructError as raised:
            error = raised
        errors: list[DestructError | None] = [error]
        if self.world_size > 1:
            errors = [None] * self.world_size
            dist.all_gather_object(errors, error)
        for rank, found in enumerate(errors):
            if found is not None:
                raise DestructError(f"rank {rank}: {found.problem}", found.remedy, found.exit_code)
        return result  # type: ignore[return-value]

    def all_agree(self, fine: bool) -> bool:
        """True when `fine` is true on every rank."""
        return bool(self.sum(torch.tensor([int(not fine)])).item() == 0)


def start(timeout_s: float = 600.0) -> Topology:
    """Join the process group that the launcher's environment describes; alone, a group of one.

    DeepSpeed wants a group and these variables even with one process, and looks for MPI where one is missing.
    """
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    for name, value in alone.items():
        os.environ.setdefault(name, value)
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(_free_port())
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed, imported later, warns that it had to guess
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    return Topology(dist.get_rank(), dist.get_world_size(), device)


def stop() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
