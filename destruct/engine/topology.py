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
from destruct.exits import Exit
from destruct.heartbeat import HEART
from destruct.ops import bfloat16_cpu

T = TypeVar("T")

PRODUCTS_KEPT = "256"
"""Compiled products of bfloat16 that are kept on a CPU, half a MiB each: every shape has its own, made in 0.3 ms, and
rollouts differ in their lengths.  With the default, 1024, they took 500 MiB in the end, and no less time (docs/lab.md).
"""


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
            with HEART.waiting():
                dist.all_reduce(total)
                _arrive(total)
        return total

    def max(self, x: Tensor) -> Tensor:
        """Elementwise maximum over ranks."""
        top = x.to(self.device, copy=True)
        if self.world_size > 1:
            with HEART.waiting():
                dist.all_reduce(top, dist.ReduceOp.MAX)
                _arrive(top)
        return top

    def interleave(self, x: Tensor) -> Tensor:
        """Undo `share`: rank r's rows (n, ...) become rows r, r + world_size, ... of the result.

        Every rank must hold the same number of rows.
        """
        if self.world_size == 1:
            return x
        parts = [torch.empty_like(x) for _ in range(self.world_size)]
        with HEART.waiting():
            dist.all_gather(parts, x.contiguous())
            _arrive(parts[0])
        return torch.stack(parts, 1).flatten(0, 1)

    def gather_flat(self, shard: Tensor) -> Tensor:
        """Concatenate equal flat shards (k,) of all ranks in rank order: (world_size * k,)."""
        if self.world_size == 1:
            return shard.clone()
        HEART.beat()
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
        with HEART.waiting():
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
        failed = {rank: found for rank, found in enumerate(self.from_all(error)) if found is not None}
        if failed:
            rank, first = next(iter(failed.items()))
            everywhere = len(failed) == self.world_size and len({found.problem for found in failed.values()}) == 1
            raise DestructError(first.problem if everywhere else f"rank {rank}: {first.problem}", *first.args[1:])
        return result  # type: ignore[return-value]

    def unlike_the_first(self, value: object) -> list[int]:
        """Ranks whose (picklable) value differs from the first rank's."""
        first, *others = self.from_all(value)
        return [rank for rank, other in enumerate(others, 1) if other != first]

    def from_all(self, value: T) -> list[T]:
        """The (picklable) value of each rank, in rank order."""
        values = [value] * self.world_size
        if self.world_size > 1:
            with HEART.waiting():
                dist.all_gather_object(values, value)
        return values

    def all_agree(self, fine: bool) -> bool:
        """True when `fine` is true on every rank."""
        return bool(self.sum(torch.tensor([int(not fine)])).item() == 0)


def _arrive(x: Tensor) -> None:
    """Wait for a collective on a GPU, which has only been queued, so that a rank is seen to wait where it does."""
    if x.is_cuda:
        torch.cuda.current_stream(x.device).synchronize()


def start(timeout_s: float = 1800.0) -> Topology:
    """Join the process group that the launcher's environment describes; alone, a group of one.

    DeepSpeed wants a group and these variables even with one process, and looks for MPI where one is missing.

    Raises:
        DestructError: more ranks than GPUs on this machine, or the ranks do not find each other.
    """
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    for name, value in alone.items():
        os.environ.setdefault(name, value)
    if 0 < torch.cuda.device_count() < local_ranks():
        raise DestructError(
            f"{local_ranks()} ranks were started on a machine with {torch.cuda.device_count()} GPU(s)",
            f"start {torch.cuda.device_count()}, one a GPU",
            Exit.ENVIRONMENT,
        )
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(_free_port())
    device = own_device()
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed, imported later, warns that it had to guess
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        try:
            dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
        except (RuntimeError, ValueError) as error:
            raise _cannot_meet(str(error).partition("\n")[0]) from None
    return Topology(dist.get_rank(), dist.get_world_size(), device)


def own_device() -> torch.device:
    """The GPU of this process, that of its local rank, or the CPU, made ready for products of bfloat16."""
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        return device
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):  # oneDNN's, and torch's of the same
        os.environ.setdefault(name, PRODUCTS_KEPT)
    if bfloat16_cpu.is_slow():
        bfloat16_cpu.lead_through_float32()
    return torch.device("cpu")


def _cannot_meet(words: str) -> DestructError:
    remedy = "unset MASTER_ADDR and MASTER_PORT, or give them a free port of the first rank's machine"
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        if os.environ.get(name) and os.environ[name] in words:
            remedy = f"unset {name}, or let it name an interface that `ip link` shows"
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    return DestructError(f"the ranks cannot meet at {place}: {words}", remedy, Exit.ENVIRONMENT)


def local_ranks() -> int:
    """Ranks of this machine, as the launcher says; 1 without one."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", "1")))


def stop() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
