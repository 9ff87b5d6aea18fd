"""Our side of bench/ppo_iteration.py, one rank of a backend: `python -m bench.ppo_ours CONFIG ITERATIONS ENDS [pure]`.

ENDS is `eos` where responses may end; with `never` no token ends one, so that all have R tokens.  `pure` leaves out
the float32 master weights of the backend `single`.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets  # noqa: F401  imports, of which nothing is measured
import deepspeed  # noqa: F401
import pandas  # noqa: F401
import pyarrow.parquet  # noqa: F401
import torch
import transformers.models.llama.modeling_llama  # noqa: F401

from bench.ppo_process import Told
from destruct.build import build
from destruct.config.settings import load
from destruct.engine import topology as ranks
from destruct.exits import Exit, leave
from destruct.loop import one_update
from destruct.run import Run
from destruct.tracking.console import Screen

NO_TOKEN = -1


def made(config: Path, ends: str) -> Run:
    """The run of a config, before its first update."""
    topology = ranks.start()
    run = build(load(config, [], topology.world_size), topology, Screen(False), time.perf_counter())
    if ends == "never":
        run.sampling = replace(run.sampling, eos_id=NO_TOKEN)
    return run


def without_masters(engine: Any) -> None:
    """Let Adam step the bfloat16 weights themselves, by gradients that are added up in bfloat16."""
    given = {
        name: value for name, value in engine.optimizer.defaults.items() if name in ("betas", "eps", "weight_decay")
    }
    engine.masters = engine.parameters
    engine.optimizer = torch.optim.AdamW(engine.parameters, lr=0.0, fused=True, **given)
    for part in engine.module.modules():
        if isinstance(part, torch.nn.Embedding):
            part.sparse = False


def state_bytes(run: Run, pure: bool) -> int:
    """Weights of every network; of the two that train masters, moments and gradients besides."""
    weight = 2 if run.settings.training.bf16.enabled else 4
    trained = sum(p.numel() for engine in (run.policy, run.value) for _, p in engine.tensors_in_full())
    frozen = sum(p.numel() for _, p in run.frozen.tensors_in_full())
    scorer = sum(p.numel() for _, p in run.policy.tensors_in_full())
    adam = 3 * weight if pure else 12 + 4 * (weight == 2)  # gradients and moments; masters
    return trained * (weight + adam) + (frozen + scorer) * weight


def main() -> None:
    config, iterations, ends, pure = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], "pure" in sys.argv[4:]
    torch.randn(64, 64) @ torch.randn(64, 64)  # its library is an import, too
    told = Told()
    run = made(config, ends)
    if pure:
        without_masters(run.policy)
        without_masters(run.value)
    told.begin()
    for _ in range(iterations):
        tokens = run.state.tokens
        one_update(run)
        told.lap()
        said = run.state.tokens - tokens - run.config.rollout.batch_size * run.config.window_tokens
        told.lengths.append(said / run.config.rollout.batch_size)
    size = state_bytes(run, pure)
    if run.topology.is_first:
        told.tell(size)
    run.close()
    ranks.stop()
    leave(Exit.DONE)


if __name__ == "__main__":
    main()
