"""The figures of a run as a whole."""

import resource
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from destruct.checkpoint import shelf
from destruct.engine.topology import Topology
from destruct.run import Run
from destruct.tracking.summary import Summary


def summarize(run: Run) -> Summary:
    """The figures of the whole run.  All ranks call it."""
    state = run.state
    tenth = max(1, state.update // 10)
    checkpoint, best = run.store.path(state.update), shelf.best_of(run.store.folder, state)
    return Summary(
        validation_loss_before=state.validation["before"],
        validation_loss_after_warmup=state.validation["after_warmup"],
        validation_loss_after=state.validation["after"],
        reward_before=mean_over_sources(state.rewards[:tenth]),
        reward_after=mean_over_sources(state.rewards[-tenth:]),
        kl_max=state.kl_max,
        kl_bound=run.config.kl.bound,
        kl_from_initial=state.kl_from_initial,
        kl_breaches=state.breaches,
        best_update=state.best_update,
        best_validation_loss=state.best_loss,
        updates=state.update,
        rounds=run.curriculum.rounds,
        significant_rounds=dict(zip(run.names, run.curriculum.significant.tolist(), strict=True)),
        weights=dict(zip(run.names, run.curriculum.weights.tolist(), strict=True)),
        tokens=state.tokens,
        skipped_steps=state.skipped,
        seconds=run.seconds,
        seconds_to_first_step=run.seconds_to_first_step,
        world_size=run.topology.world_size,
        peak_rss_mib=peak_rss_mib(run.topology),
        seed=run.config.run.seed,
        files={
            "checkpoint": str(checkpoint) if checkpoint.exists() else "none: the last save failed",
            "best checkpoint": str(best) if best else "none in this folder",
            "tensorboard": f"tensorboard --logdir={run.folder / 'logs'}",
            "samples": str(run.folder / "samples.jsonl"),
            "summary": str(run.folder / "summary.json"),
        },
    )


def mean_over_sources(updates: list[list[list[float]]]) -> float:
    """Mean score per source over some updates, averaged equally over the sources that were drawn.

    Args:
        updates: per update and source [sum of scores, rollouts].

    Returns:
        Reward units; nan where all that was drawn is of sources that are gone.
    """
    totals = np.array(updates).sum(0)
    drawn = totals[totals[:, 1] > 0]
    return float((drawn[:, 0] / drawn[:, 1]).mean()) if len(drawn) else float("nan")


def peak_rss_mib(topology: Topology) -> float:
    """Peak resident memory of the largest rank, MiB.  All ranks call it."""
    return topology.max(torch.tensor([_peak_mib()], dtype=torch.float64)).item()


def _peak_mib() -> float:
    """That of this process alone: on Linux getrusage counts what its parent had when it was started."""
    with suppress(OSError, IndexError):  # some sandboxes have no such line
        return int(Path("/proc/self/status").read_text("ascii").partition("VmHWM:")[2].split()[0]) / 2**10
    unit = 2**20 if sys.platform == "darwin" else 2**10  # getrusage counts bytes there and KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
