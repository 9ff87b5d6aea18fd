"""Interpreter, packages, torch's build, compiler, and which `deepspeed` is started."""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from glob import glob
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from destruct.checkup.finding import Finding, fail, ok, warn

SETUP = "run `make setup` in the checkout, then `source launch/env.sh`"
GPU_FILES = "/dev/nvidia[0-9]*"
SHOWN = ("torch", "deepspeed", "transformers", "datasets")
COMPILING_S = 60


def interpreter() -> Iterator[Finding]:
    """Python's version."""
    yield ok("python", f"Python {platform.python_version()} at {sys.executable}")


def packages() -> Iterator[Finding]:
    """Each package that destruct's own metadata asks for, by the version that it asks for."""
    try:
        wanted = [Requirement(line) for line in requires("destruct") or ()]
    except PackageNotFoundError:
        yield fail("packages", "destruct is not installed for this interpreter", SETUP)
        return
    wrong = []
    for requirement in wanted:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            here = version(requirement.name)
        except PackageNotFoundError:
            wrong.append(f"{requirement.name} is not installed")
            continue
        if not requirement.specifier.contains(here, prereleases=True):
            wrong.append(f"{requirement.name} {here} is not {requirement.name}{requirement.specifier}")
    if wrong:
        yield fail("packages", "; ".join(wrong), SETUP)
    else:
        yield ok("packages", ", ".join(f"{name} {version(name)}" for name in SHOWN))


def torch_build() -> Iterator[Finding]:
    """Whether torch is built for the devices of this machine."""
    import torch

    gpus, words = len(glob(GPU_FILES)), f"torch {torch.__version__}"
    if gpus and torch.version.cuda is None:
        yield fail(
            "torch", f"{words} is built for CPUs alone, and this machine has {gpus} GPU(s)", "install its CUDA build"
        )
    elif gpus and not torch.cuda.is_available():
        yield fail(
            "torch",
            f"{words} is built for CUDA {torch.version.cuda}, and cannot use the {gpus} GPU(s) of this machine",
            "compare with the driver that nvidia-smi tells, and look at CUDA_VISIBLE_DEVICES",
        )
    else:
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for CPUs"
        yield ok("torch", f"{words} is built {built}")


def gpus() -> Iterator[Finding]:
    """Names and memory of the GPUs that this process may use; nothing where there are none."""
    import torch

    for index in range(torch.cuda.device_count()):
        name, (free, total) = torch.cuda.get_device_name(index), torch.cuda.mem_get_info(index)
        words = f"{name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
        if free < 0.9 * total:
            yield warn(f"gpu {index}", words, "see with nvidia-smi who uses it, and end that or leave it out")
        elif not torch.cuda.is_bf16_supported(including_emulation=False):
            yield fail(f"gpu {index}", f"{words}; it knows no bfloat16", "train on A100 or later, or on the CPU")
        else:
            yield ok(f"gpu {index}", words)


def compiler(needed_for: str | None) -> Iterator[Finding]:
    """Whether a program can be compiled, as DeepSpeed and Triton do at their first use.

    Args:
        needed_for: what does not work without; None where a run only gets slower.
    """
    name = os.environ.get("CXX", "c++")
    words, path = f"the compiler {name} ", shutil.which(name)
    if path is None:
        words += "is not installed"
    else:
        said = _compiled(path)
        if said is None:
            yield ok("compiler", f"{path} compiles")
            return
        words += f"does not compile: {said}"
    remedy = "install it (on Debian: apt-get install g++), or let CXX name another one"
    if needed_for is None:
        yield warn("compiler", f"{words}; ranks on one CPU machine do without DeepSpeed's shared memory", remedy)
    else:
        yield fail("compiler", f"{words}; {needed_for} needs one", remedy)


def _compiled(path: str) -> str | None:
    """None where a shared library can be made of a small program; else what the compiler says."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "small.cpp")
        source.write_text("#include <vector>\nint f() { return std::vector<int>(3).size(); }\n", encoding="utf-8")
        command = [path, "-shared", "-fPIC", "-o", f"{folder}/small.so", str(source)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILING_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
    return None if done.returncode == 0 else next(iter(done.stderr.strip().splitlines()), f"exit {done.returncode}")


def launcher() -> Iterator[Finding]:
    """Whether `deepspeed` is the launcher that knows `-m` and looks after the ranks."""
    path = shutil.which("deepspeed")
    if path is None:
        yield warn("launcher", "deepspeed is not on PATH", SETUP)
    elif "DeepSpeed's own `deepspeed`" not in Path(path).read_text(encoding="utf-8", errors="replace"):
        remedy = "`source launch/env.sh` in the checkout, or use torchrun"
        yield warn("launcher", f"{path} is DeepSpeed's own, which knows no -m and passes no signal on", remedy)
    else:
        yield ok("launcher", path)
