"""Where the time of an update goes: seconds, waits, bytes and memory of each phase, and a trace of one update.

    make profile CONFIG=configs/local.yaml NUM_GPUS=2 ARGS="rollout.batch_size=32"
    python -m bench.profile_update --config configs/local.yaml [--trace FILE.json.gz] [key.sub=value ...]

The run is made anew in a temporary folder, and warms up as the config says.  After one update that is not counted three
are timed, one more has the bytes of its collectives counted, one more is traced (for chrome://tracing or
ui.perfetto.dev).  Figures are those of the slowest or fullest rank; its peak is that of the GPU, or of the process.
"""

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import deepspeed  # noqa: F401  an import, of which nothing is measured
import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile, record_function

from bench.ppo_process import forget_peak, memory_mib
from bench.watched_rank import Counting, Waits
from destruct.build import build
from destruct.config.settings import load
from destruct.engine import topology as ranks
from destruct.exits import Exit, leave
from destruct.loop import one_update
from destruct.preparation import warm_up
from destruct.progress import tracked
from destruct.run import Run
from destruct.tracking.console import Screen
from destruct.tracking.watch import Watch
from destruct.train import world_size

TIMED = 3  # updates
Figures = dict[str, dict[str, float]]  # phase, or network and method within one -> what is known of it


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_mib() -> float:
    """Of the GPU's memory in tensors, or where there is none of this process's."""
    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else memory_mib("VmHWM")


class Profile(Watch):
    """Adds up what each phase takes, and within it each network's forwards, backwards and steps."""

    def __init__(self) -> None:
        super().__init__()
        self.waits, self.bytes = Waits(), Counting()
        self.names: list[str] = []  # of the phase that is on, and of what is on within it
        self.found: dict[str, Counter[str]] = {}
        self.peaks: Counter[str] = Counter()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        forget_peak()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.bytes.begin()
        with super().__call__(phase), self.part(phase):
            yield
        self.peaks[phase] = max(self.peaks[phase], peak_mib())
        for kind, size in self.bytes.read().items():
            self.found[phase][kind] += size

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A phase, or a part of one."""
        self.names.append(name)
        synchronize()
        begun, waited = time.perf_counter(), self.waits.seconds
        with record_function(name):
            yield
            synchronize()
        told = self.found.setdefault("  ".join(self.names), Counter())
        told["seconds"] += time.perf_counter() - begun
        told["waits"] += self.waits.seconds - waited
        self.names.pop()

    def watch_engine(self, role: str, engine: Any) -> None:
        """Time this engine's calls; a class of its own tells it from the others of its kind."""

        def timed(method: Callable[..., Any], what: str) -> Callable[..., Any]:
            def call(*arguments: Any, **named: Any) -> Any:
                with self.part(f"{role} {what}") if self.names else nullcontext():
                    return method(*arguments, **named)

            return call

        kind = type(engine)
        methods = {name: what for name, what in METHODS.items() if hasattr(kind, name)}
        engine.__class__ = type(kind.__name__, (kind,), {n: timed(getattr(kind, n), w) for n, w in methods.items()})

    def take_figures(self) -> tuple[Figures, dict[str, float]]:
        """What was found since the last call, and the peak of each phase."""
        found, peaks, self.found, self.peaks = self.found, self.peaks, {}, Counter()
        return {name: dict(told) for name, told in found.items()}, dict(peaks)


METHODS = {
    "__call__": "forward",
    "backward": "backward",
    "step": "step",
    "fill": "gathered",
    "refresh": "refreshed",
}
"""Of an engine -> how the table calls it."""


def of_all_ranks(run: Run, found: Figures) -> Figures:
    """The largest figure of any rank."""
    told = run.topology.from_all(found)
    return {name: {what: max(each[name].get(what, 0.0) for each in told) for what in found[name]} for name in found}


def table(timed: Figures, counted: Figures, peaks: dict[str, float]) -> Table:
    """Per update."""
    shown = Table("phase", title=f"an update, mean of {TIMED}; waits are seconds in collectives", title_justify="left")
    for column in ("seconds", "share", "waits", "MiB sent", "peak MiB"):
        shown.add_column(column, justify="right")
    phases = [name for name in timed if "  " not in name]
    whole = sum(timed[phase]["seconds"] for phase in phases)
    for phase in sorted(phases, key=ORDER.index):
        for name in [phase, *(name for name in timed if name.startswith(f"{phase}  "))]:
            seconds, waited = timed[name]["seconds"], timed[name]["waits"]
            cells = [f"{seconds / TIMED:.3f}", f"{seconds / whole:.1%}", f"{waited / TIMED:.3f}"]
            if name == phase:
                sent = sum(size for kind, size in counted.get(phase, {}).items() if kind not in ("seconds", "waits"))
                cells += [f"{sent / 2**20:,.0f}", f"{peaks[phase]:,.0f}"]
            shown.add_row("  " * (name != phase) + name.rpartition("  ")[2], *cells)
    shown.add_row("all", f"{whole / TIMED:.3f}")
    return shown


ORDER = ("round", "data", "generate", "score", "update", "kl", "evaluate", "compare", "checkpoint")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--trace", type=Path, default=Path("runs/profile.json.gz"), help="default %(default)s")
    parser.add_argument("--local_rank", "--local-rank", type=int, help="given by launchers; the environment decides")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    options = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as scratch:
        updates = [f"run.folder={scratch}", "run.num_epochs=1", f"run.updates_per_epoch={TIMED + 4}"]
        topology = ranks.start()
        folder = topology.from_all(updates)[0]
        settings = load(options.config, [*options.overrides, *folder], world_size())
        run = build(settings, topology, Screen(False), time.perf_counter())
        run.watch = watch = Profile()
        for role in ("policy", "value", "frozen", "initial"):
            if getattr(run.networks, role) is not None:
                watch.watch_engine(role, getattr(run.networks, role))
        warm_up(run)
        one_update(run)
        watch.take_figures()
        for _ in tracked(range(TIMED), "profile", "updates") if topology.is_first else range(TIMED):
            one_update(run)
        timed, peaks = watch.take_figures()
        with watch.bytes:
            one_update(run)
        counted, _ = watch.take_figures()
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        with profile(activities=activities) as traced:
            one_update(run)
        timed, counted, peaks = (of_all_ranks(run, found) for found in (timed, counted, {"peak": peaks}))
        if topology.is_first:
            options.trace.parent.mkdir(parents=True, exist_ok=True)
            traced.export_chrome_trace(str(options.trace))
            Console().print(table(timed, counted, peaks["peak"]), f"trace of an update: {options.trace}")
        run.close()
        ranks.stop()
    leave(Exit.DONE)


if __name__ == "__main__":
    main()
