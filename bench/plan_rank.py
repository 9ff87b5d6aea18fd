"""One rank of bench/plan_accuracy.py: trains as usual while its memory is watched and its collectives are counted.

    torchrun --nproc-per-node=2 -m bench.plan_rank configs/local.yaml [key.sub=value ...]

The first rank prints one JSON line: for each phase of the last update the peak memory of the fullest rank, above that
of the imports, and the bytes of each kind of collective.
"""

import ctypes
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import deepspeed  # noqa: F401  an import, of which nothing is measured
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench.loading import anonymous_mib
from destruct.build import build
from destruct.config.settings import load
from destruct.engine import fsdp  # noqa: F401  as above
from destruct.engine import topology as ranks
from destruct.exits import Exit, leave
from destruct.loop import make_updates
from destruct.tracking.console import Screen
from destruct.tracking.watch import Watch

LIBC = ctypes.CDLL(None)
MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h
KINDS = {
    "allgather_": "all-gather",
    "_allgather_base_": "all-gather",
    "all_gather_into_tensor": "all-gather",
    "allreduce_": "all-reduce",
    "_reduce_scatter_base_": "reduce-scatter",
    "reduce_scatter_tensor": "reduce-scatter",
}
"""Operators of torch.distributed -> the plan's word; the others carry no weights."""


class Counting(TorchDispatchMode):
    """Adds up the bytes of every collective, whoever calls it: those of the whole tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2]
        if func.namespace in ("c10d", "_c10d_functional") and name in KINDS:
            self.bytes[KINDS[name]] += max(size(value) for value in (*args, output))
        return output


def size(value: Any) -> int:
    """Bytes of a tensor, or of all in a list."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    return sum(map(size, value)) if isinstance(value, (list, tuple)) else 0


class Memory:
    """The peak of this process's anonymous memory, in a thread of its own.

    What glibc keeps of freed memory is given back before each look, so that the figure is what is in use.
    """

    def __init__(self) -> None:
        self.before, self.peak = anonymous_mib(), 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            LIBC.malloc_trim(0)
            self.peak = max(self.peak, anonymous_mib() - self.before)
            time.sleep(0.005)


class PhaseWatch(Watch):
    """Keeps, of each phase's last time, the peak memory and the bytes of collectives."""

    def __init__(self, memory: Memory, counting: Counting):
        super().__init__()
        self.memory, self.counting = memory, counting
        self.phases: dict[str, dict[str, float]] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        self.memory.peak = 0.0
        self.counting.bytes.clear()
        with super().__call__(phase):
            yield
        self.phases[phase] = {"peak_mib": self.memory.peak, **self.counting.bytes}


def main() -> None:
    topology = ranks.start()
    settings = load(Path(sys.argv[1]), sys.argv[2:], topology.world_size)
    torch.randn(64, 64) @ torch.randn(64, 64)  # its library is an import, too
    LIBC.mallopt(MMAP_THRESHOLD, 2**17)
    memory = Memory()
    run = build(settings, topology, Screen(False), time.perf_counter())
    LIBC.mallopt(MMAP_THRESHOLD, 2**17)  # the build had its own
    counting = Counting()
    run.watch = watch = PhaseWatch(memory, counting)
    with counting:
        make_updates(run)
    found = topology.from_all(watch.phases)
    report = {
        phase: figures | {"peak_mib": max(each[phase]["peak_mib"] for each in found)}
        for phase, figures in watch.phases.items()
    }
    if topology.is_first:
        print(json.dumps(report))
    run.close()
    ranks.stop()
    leave(Exit.DONE)


if __name__ == "__main__":
    main()
