"""Peak host memory of loading a model into shards, for ZeRO-3 and for FSDP, against loading it whole on every rank.

    python bench/loading.py --mib 1024 --ranks 2

It writes a Llama of that size in bfloat16 (files of 64 MiB), loads it in fresh ranks by each way, and prints, for the
largest rank, the anonymous memory above that of the imports; pages of the files themselves are the kernel's to drop.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from destruct.progress import tracked

ROOT = Path(__file__).resolve().parents[1]
WAYS = ("zero3", "fsdp", "whole")


def write_model(folder: Path, mib: int) -> int:
    """A tied Llama of about that size; returns its bytes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    layer = 1024 * 1024 * 2.5 + 3 * 1024 * 4096  # attention with 4 of 16 key/value heads, feed-forward
    layers = max(1, round((mib * 2**20 / 2 - 8192 * 1024) / layer))
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=4,
        tie_word_embeddings=True,
    )
    lm = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
    lm.save_pretrained(folder, max_shard_size="64MB")
    return sum(p.numel() for p in lm.parameters()) * 2


def anonymous_mib() -> float:
    """Memory of this process that no file backs."""
    match = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) / 1024


class Watched:
    """Seconds of a block, and the anonymous memory above that of its beginning: at its peak and at its end, MiB."""

    def __enter__(self) -> "Watched":
        self._before, self._peak, self._done = anonymous_mib(), 0.0, False
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        self._started = time.perf_counter()
        return self

    def _watch(self) -> None:
        while not self._done:
            self._peak = max(self._peak, anonymous_mib())
            time.sleep(0.002)

    def __exit__(self, *raised: object) -> None:
        self.seconds = time.perf_counter() - self._started
        self._done = True
        self._watcher.join()
        self.peak_mib, self.after_mib = self._peak - self._before, anonymous_mib() - self._before


def rank(folder: str, way: str) -> None:
    """Load once; the first rank prints the largest peak over the ranks."""
    import torch

    from destruct.config.deepspeed import TrainingJSON, read_json, training_json
    from destruct.config.model import PolicyShape
    from destruct.engine import topology as ranks
    from destruct.engine.deepspeed import loading_in_shards
    from destruct.exits import Exit, leave
    from destruct.models.policy import build_policy

    topology = ranks.start()
    json_ = training_json(
        read_json(ROOT / "ds_configs" / "zero3.json", TrainingJSON), 1, topology.world_size, 1e-6, 1.0
    )
    json_["zero_optimization"]["stage"] = 3 if way == "zero3" else 2
    fsdp_ranks = topology.world_size if way == "fsdp" else 1
    with Watched() as watched:
        with loading_in_shards(json_):
            network = build_policy(PolicyShape(path=folder), 0, torch.bfloat16, 0, "chunked", fsdp_ranks=fsdp_ranks)
        if way != "zero3":  # until a step changes them, weights are pages of the mapped files
            for p in network.parameters():
                p.data = p.data.clone()
    figures = torch.tensor([watched.peak_mib, watched.after_mib], dtype=torch.float64)
    peak_mib, after_mib = topology.max(figures).tolist()
    if topology.is_first:
        print(json.dumps({"peak_mib": peak_mib, "after_mib": after_mib, "seconds": watched.seconds}))
    ranks.stop()
    leave(Exit.DONE)


def measure(folder: Path, ranks: int, way: str) -> dict[str, float]:
    """The figures of one way, from fresh processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    command = [*launcher, __file__, "--folder", str(folder), "--way", way]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=1024, help="size of the model")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        return rank(options.folder, options.way)
    with tempfile.TemporaryDirectory() as scratch:
        mib = write_model(Path(scratch), options.mib) / 2**20
        print(f"{mib:.0f} MiB of weights, {options.ranks} ranks: a share is {mib / options.ranks:.0f} MiB")
        for way in tracked(WAYS, "loading"):
            print(way, json.dumps(measure(Path(scratch), options.ranks, way)))
    return None


if __name__ == "__main__":
    main()
