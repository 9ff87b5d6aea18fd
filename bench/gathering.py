"""Memory and time of sampling from a copy of the policy gathered once, against layer by layer.

    python bench/gathering.py --mib 1024 --ranks 4

A Llama of that size in bfloat16 with random weights is sharded by ZeRO-3 or FSDP; every rank then samples 8 tokens for
two prompts. For the largest rank: the anonymous memory that sampling adds to the shards at its peak, and the seconds.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.loading import ROOT, Watched, write_model
from destruct.progress import tracked

BACKENDS, WAYS = ("deepspeed", "fsdp"), ("once", "layers")


def rank(folder: str, backend: str, way: str) -> None:
    """Sample once; the first rank prints the figures of the largest."""
    import torch

    from destruct.config.deepspeed import Optimizer, TrainingJSON, read_json, training_json
    from destruct.config.model import PolicyShape
    from destruct.engine import topology as ranks
    from destruct.engine.borrowing import borrow
    from destruct.engine.deepspeed import DeepSpeedEngine, loading_in_shards
    from destruct.engine.fsdp import FsdpEngine
    from destruct.exits import Exit, leave
    from destruct.models.policy import build_copy, build_policy, take_buffers
    from destruct.rollout.generate import Sampling, sample_responses

    topology = ranks.start()
    shape = PolicyShape(path=folder)
    json_ = training_json(
        read_json(ROOT / "ds_configs" / "zero3.json", TrainingJSON), 1, topology.world_size, 1e-6, 1.0
    )
    if backend == "deepspeed":
        with loading_in_shards(json_):
            network = build_policy(shape, 0, torch.bfloat16, 0, "chunked")
        engine = DeepSpeedEngine(network, json_, topology)
    else:
        network = build_policy(shape, 0, torch.bfloat16, 0, "chunked", fsdp_ranks=topology.world_size)
        engine = FsdpEngine(network, Optimizer(), 1, 1.0, topology)
    with Watched() as watched:
        if way == "once":
            replica = build_copy(shape, 0, torch.bfloat16, "chunked")
            engine.fill(replica)
        else:
            with torch.device("meta"):
                replica = build_copy(shape, 0, torch.bfloat16, "chunked")
            take_buffers(replica, engine.module)
            borrow(replica, engine, topology.device)
        prompts, uniforms = torch.arange(32).view(2, 16), torch.full((2, 8), 0.5, dtype=torch.float64)
        tokens, _, _ = sample_responses(replica, prompts, uniforms, Sampling(1.0, eos_id=-1, pad_id=0))
    figures = topology.max(torch.tensor([watched.peak_mib, watched.seconds], dtype=torch.float64)).tolist()
    if topology.is_first:
        print(json.dumps({"peak_mib": figures[0], "seconds": figures[1], "tokens": tokens[0].tolist()}))
    ranks.stop()
    leave(Exit.DONE)


def measure(folder: Path, ranks: int, backend: str, way: str) -> dict[str, object]:
    """The figures of one way, from fresh processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    command = [*launcher, __file__, "--folder", str(folder), "--backend", backend, "--way", way]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=1024, help="size of the model")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--backend", choices=BACKENDS, help=argparse.SUPPRESS)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        return rank(options.folder, options.backend, options.way)
    with tempfile.TemporaryDirectory() as scratch:
        mib = write_model(Path(scratch), options.mib) / 2**20
        print(f"{mib:.0f} MiB of weights, {options.ranks} ranks: a share is {mib / options.ranks:.0f} MiB")
        for backend, way in tracked(list(itertools.product(BACKENDS, WAYS)), "gathering"):
            print(backend, way, json.dumps(measure(Path(scratch), options.ranks, backend, way)), flush=True)
    return None


if __name__ == "__main__":
    main()
