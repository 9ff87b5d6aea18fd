"""The GPUs of this machine, and whether torch is built for them."""

import glob
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from destruct.checkup.finding import Finding, fail, ok, warn

FILES = "/dev/nvidia[0-9]*"
PATIENCE_S = 120

QUERY = """
import json, torch
gpus = []
for index in range(torch.cuda.device_count()):
    try:
        about = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        gpus.append({"name": about.name, "major": about.major, "free": free, "total": total})
    except RuntimeError as error:
        gpus.append({"error": str(error).strip().partition("\\n")[0]})
print(json.dumps(gpus))
"""
"""What a process of its own is asked: whoever asks keeps a part of each GPU to its end, or all of an exclusive one."""


def torch_build() -> Iterator[Finding]:
    """Whether torch is built for the devices of this machine."""
    import torch

    there = glob.glob(FILES)
    usable, words = sum(map(_opens, there)), f"torch {torch.__version__}"
    built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built for CPUs"
    if not there:
        yield ok("torch", f"{words} {built}")
    elif os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        yield ok("torch", f"{words} {built}; CUDA_VISIBLE_DEVICES hides the {len(there)} GPU(s) of this machine")
    elif not usable:
        remedy = "ask for one (sbatch --gpus-per-node, docker --gpus), or train on the CPU"
        yield warn("torch", f"{words} {built}; none of the {len(there)} GPU(s) of this machine can be opened", remedy)
    elif torch.version.cuda is None:
        yield fail("torch", f"{words} {built} alone, and this machine has {usable} GPU(s)", "install its CUDA build")
    elif not torch.cuda.is_available():
        remedy = "compare with the driver that nvidia-smi tells, and look at CUDA_VISIBLE_DEVICES"
        yield fail("torch", f"{words} {built}, and cannot use the {usable} GPU(s) of this machine", remedy)
    else:
        yield ok("torch", f"{words} {built}")


def _opens(path: str) -> bool:
    """Rights do not say it: a control group may forbid what they allow."""
    try:
        os.close(os.open(path, os.O_RDWR))
    except OSError:
        return False
    return True


def ask() -> list[dict[str, Any]]:
    """Name, major version and bytes of each GPU that this process may use, or the error in their place."""
    import torch

    count = torch.cuda.device_count()
    if count == 0:
        return []
    try:
        asked = subprocess.run([sys.executable, "-c", QUERY], capture_output=True, text=True, timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        return [{"error": f"no answer in {PATIENCE_S} s"}] * count
    if asked.returncode != 0:
        return [{"error": next(reversed(asked.stderr.strip().splitlines()), f"exit {asked.returncode}")}] * count
    gpus: list[dict[str, Any]] = json.loads(asked.stdout.splitlines()[-1])
    return gpus


def judge(gpus: Iterable[dict[str, Any]]) -> Iterator[Finding]:
    """What `ask` has found, GPU by GPU."""
    for index, gpu in enumerate(gpus):
        called = f"gpu {index}"
        if "error" in gpu:
            yield fail(
                called, f"does not answer: {gpu['error']}", "see with nvidia-smi whether it works, and who uses it"
            )
            continue
        words = f"{gpu['name']}, {gpu['free'] / 2**30:.1f} of {gpu['total'] / 2**30:.1f} GiB free"
        if gpu["major"] < 8:
            yield fail(called, f"{words}; it knows no bfloat16", "train on A100 or later, or on the CPU")
        elif gpu["free"] < 0.9 * gpu["total"]:
            yield warn(called, words, "see with nvidia-smi who uses it, and end that or leave it out")
        else:
            yield ok(called, words)
