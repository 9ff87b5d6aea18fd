"""The path over one GPU, whole: configs/base.yaml through DeepSpeed ZeRO-3 with NCCL, saved, resumed, timed.

    python -m bench.gpu_path small         # a Llama of 3 layers: the same run twice, and resumed in the middle
    python -m bench.gpu_path llama-1b      # Llama-3.2-1B's shape, random weights: three updates, resumed for a fourth

One JSON line on stdout.  The weights are random and the texts those that come with destruct, so nothing is downloaded;
every other key is as shipped, the sizes below apart.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.corpora import write_corpora
from tests.pretrained import write_llama

ROOT = Path(__file__).resolve().parents[1]

LLAMA_1B = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "initializer_range": 0.02,
}
"""Llama-3.2-1B, 1.24 billion parameters with its 128,256 tied embeddings."""
TOKENS_OF_1B = 128256

COMMON = {"run.num_epochs": 1, "frozen.refresh_every": 2, "warmup.value_updates": 1}
SMALL = COMMON | {
    "run.validation_windows": 8,
    "rollout.batch_size": 16,
    "rollout.prompt_tokens": 16,
    "rollout.response_tokens": 16,
    "curriculum.difficulty_sample_size": 8,
    "prompts.response_tokens": 8,
    "ppo.policy_lr": 1e-3,
}


def train(folder: Path, name: str, updates: int, resume: Path | None = None, **changes: Any) -> dict[str, Any]:
    """One run under the launcher that people type; its figures.

    Args:
        folder: holds `llama` and `corpora`.
        changes: `runs`, the folder of the runs, and keys of the YAML with `__` for dots.
    """
    values = COMMON | {
        "run.name": name,
        "run.folder": str(changes.pop("runs", folder / "runs")),
        "run.updates_per_epoch": updates,
        "model.policy.path": str(folder / "llama"),
        "model.value.path": str(folder / "llama"),
        "data.root": str(folder / "corpora"),
        "data.cache": str(folder / "cache"),
    }
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    if resume is not None:
        values["run.resume"] = str(resume)
    overrides = [f"{key}={value}" for key, value in values.items()]
    launcher = [str(ROOT / "launch" / "bin" / "deepspeed"), "--num_gpus", "1", "-m", "destruct.train"]
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *launcher, "--config", str(ROOT / "configs" / "base.yaml"), *overrides],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        stdout=sys.stderr,
    )
    seconds = time.perf_counter() - begun
    if done.returncode:
        raise SystemExit(f"{name} ended with exit code {done.returncode}")
    run = Path(values["run.folder"]) / name
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    made = [line for line in lines if "ppo/steps" in line]
    print(f"{name}: {seconds:.0f} s", *(json.dumps(costs(line)) for line in made), sep="\n", file=sys.stderr)
    return {"folder": run, "seconds": seconds, "updates": made}


def costs(line: dict[str, Any]) -> dict[str, float]:
    """What an update took."""
    return {name: round(value, 3) for name, value in line.items() if name.startswith(("time/", "memory/"))}


def unlike(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> dict[str, float]:
    """Metrics of the same updates that differ, and by how much; times and memory apart."""
    found: dict[str, float] = {}
    for left, right in zip(a, b, strict=True):
        for name in left:
            if not name.startswith(("time/", "memory/")) and left[name] != right[name]:
                found[name] = max(found.get(name, 0.0), abs((left[name] or 0.0) - (right[name] or 0.0)))
    return found


def differences(a: Path, b: Path) -> dict[str, float]:
    """File and name of every tensor that differs between two checkpoints, and by how much at most."""
    found = {}
    names = {path.relative_to(a).as_posix() for path in a.rglob("*") if path.suffix in (".pt", ".safetensors")}
    assert {name.partition("/")[0] for name in names} == {"policy", "value", "frozen"}, f"nothing to compare in {a}"
    for name in sorted(names):
        left, right = (tensors(folder / name) for folder in (a, b))
        assert left.keys() == right.keys(), f"{name} holds other tensors"
        for key in left:
            if not torch.equal(left[key], right[key]):
                found[f"{name} {key}"] = (left[key].double() - right[key].double()).abs().max().item()
    return found


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a file that this script had written, by their place in it."""
    if path.suffix == ".safetensors":
        return load_file(path)
    found, stack = {}, [("", torch.load(path, map_location="cpu", weights_only=False))]
    while stack:
        place, value = stack.pop()
        if isinstance(value, torch.Tensor):
            found[place] = value
        elif isinstance(value, dict):
            stack += [(f"{place}/{key}", item) for key, item in value.items()]
        elif isinstance(value, (list, tuple)):
            stack += [(f"{place}/{number}", item) for number, item in enumerate(value)]
    return found


def small(folder: Path) -> dict[str, Any]:
    """Four updates; the same again; two updates of them resumed."""
    write_llama(folder / "llama")
    write_corpora(folder / "corpora")
    changes = {key.replace(".", "__"): value for key, value in SMALL.items()} | {"run__checkpoint_every": 2}
    first = train(folder, "first", 4, **changes)
    again = train(folder, "again", 4, **changes)
    resumed = train(folder, "resumed", 4, first["folder"] / "checkpoints" / "step-00000002", **changes)
    last = "checkpoints/step-00000004"
    return {
        "first_ratio_errors": [line["ppo/first_ratio_error"] for line in first["updates"]],
        "kl_sampled": [line["kl/sampled"] for line in first["updates"]],
        "repeated_metrics_unlike": unlike(first["updates"], again["updates"]),
        "repeated_tensors_unlike": differences(first["folder"] / last, again["folder"] / last),
        "resumed_metrics_unlike": unlike(first["updates"][2:], resumed["updates"]),
        "resumed_tensors_unlike": differences(first["folder"] / last, resumed["folder"] / last),
    }


def llama_1b(folder: Path, elsewhere: Path) -> dict[str, Any]:
    """Three updates of configs/base.yaml's sizes, saved below `folder`, and a fourth from there, saved `elsewhere`."""
    begun = time.perf_counter()
    write_llama(folder / "llama", shard="5GB", vocab_size=TOKENS_OF_1B, **LLAMA_1B)
    write_corpora(folder / "corpora", size=500_000)
    made = time.perf_counter() - begun
    run = train(folder, "llama-1b", 3)
    checkpoint = run["folder"] / "checkpoints" / "step-00000003"
    frozen = load_file(checkpoint / "frozen" / "model.safetensors")
    resumed = train(folder, "resumed", 4, checkpoint, runs=elsewhere / "runs")
    size = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    return {
        "seconds_to_make": made,
        "seconds": [run["seconds"], resumed["seconds"]],
        "parameters": sum(tensor.numel() for tensor in frozen.values()),
        "checkpoint_gib": size / 2**30,
        "first_ratio_errors": [line["ppo/first_ratio_error"] for line in run["updates"] + resumed["updates"]],
        "kl_sampled": [line["kl/sampled"] for line in run["updates"] + resumed["updates"]],
        "costs": [costs(line) for line in run["updates"] + resumed["updates"]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=["small", "llama-1b"])
    parser.add_argument("--elsewhere", type=Path, help="a second disk for the second checkpoint of 35 GiB")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="destruct-gpu-"))
    try:
        result = small(folder) if arguments.size == "small" else llama_1b(folder, arguments.elsewhere or folder)
    finally:
        shutil.rmtree(folder)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    print(json.dumps({"size": arguments.size, "device": device, "torch": torch.__version__, **result}))


if __name__ == "__main__":
    main()
