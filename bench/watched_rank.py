"""One rank of a benchmark: trains as usual while its memory is watched, its collectives counted, or its waits timed.

    torchrun --nproc-per-node=2 -m bench.watched_rank memory,bytes configs/local.yaml [key.sub=value ...]

The first rank prints one JSON line: for each phase of the last update what the fullest or slowest rank has of it.
"""

import ctypes
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import datasets  # noqa: F401  imports, of which nothing is measured
import deepspeed  # noqa: F401
import pandas  # noqa: F401
import pyarrow.parquet  # noqa: F401
import torch
import transformers.models.llama.modeling_llama  # noqa: F401
from torch._C._distributed_c10d import Work
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

    def begin(self) -> None:
        """Forget what was counted."""
        self.bytes.clear()

    def read(self) -> dict[str, float]:
        """Bytes of each kind since `begin`."""
        return dict(self.bytes)


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

    def begin(self) -> None:
        """Forget the peak."""
        self.peak = 0.0

    def read(self) -> dict[str, float]:
        """MiB above those of the imports, at the peak since `begin`."""
        return {"peak_mib": self.peak}


class Waits:
    """Seconds that this process waits for collectives."""

    def __init__(self) -> None:
        self.seconds = 0.0
        wait = Work.wait

        def timed(work: Any, *arguments: Any, **named: Any) -> Any:
            begun = time.perf_counter()
            try:
                return wait(work, *arguments, **named)
            finally:
                self.seconds += time.perf_counter() - begun

        Work.wait = timed

    def begin(self) -> None:
        """Forget what was waited."""
        self.seconds = 0.0

    def read(self) -> dict[str, float]:
        """Seconds since `begin`."""
        return {"waited_s": self.seconds}


class PhaseWatch(Watch):
    """Keeps what the meters say of each phase's last time, and its seconds."""

    def __init__(self, meters: list[Any]):
        super().__init__()
        self.meters = meters
        self.phases: dict[str, dict[str, float]] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        for meter in self.meters:
            meter.begin()
        begun = time.perf_counter()
        with super().__call__(phase):
            yield
        found = {"seconds": time.perf_counter() - begun}
        for meter in self.meters:
            found |= meter.read()
        self.phases[phase] = found


def main() -> None:
    asked, config, *overrides = sys.argv[1:]
    topology = ranks.start()
    settings = load(Path(config), overrides, topology.world_size)
    torch.randn(64, 64) @ torch.randn(64, 64)  # its library is an import, too
    if "memory" in asked:
        LIBC.mallopt(MMAP_THRESHOLD, 2**17)
    meters = [METERS[name]() for name in asked.split(",")]
    run = build(settings, topology, Screen(False), time.perf_counter())
    if "memory" in asked:
        LIBC.mallopt(MMAP_THRESHOLD, 2**17)  # the build had its own
    run.watch = watch = PhaseWatch(meters)
    with next((meter for meter in meters if isinstance(meter, Counting)), nullcontext()):
        make_updates(run)
    found = topology.from_all(watch.phases)
    most = {
        phase: {name: max(each[phase].get(name, 0) for each in found) for name in figures}
        for phase, figures in watch.phases.items()
    }
    if topology.is_first:
        print(json.dumps(most))
    run.close()
    ranks.stop()
    leave(Exit.DONE)


METERS = {"memory": Memory, "bytes": Counting, "waits": Waits}
"""What can be asked for."""

if __name__ == "__main__":
    main()
