"""Interpreter, packages, compilers, and which `deepspeed` is started."""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from destruct.checkup.finding import Finding, fail, ok, warn

SETUP = "run `make setup` in the checkout, then `source launch/env.sh`"
CHECKOUT = Path(__file__).parents[2]
SHOWN = ("torch", "deepspeed", "transformers", "datasets")
COMPILING_S = 60
CPP = "#include <vector>\nint f() { return std::vector<int>(3).size(); }\n"


def interpreter() -> Iterator[Finding]:
    """Python's version."""
    yield ok("python", f"Python {platform.python_version()} at {sys.executable}")


def packages() -> Iterator[Finding]:
    """Each package that destruct asks for, by the version that it asks for."""
    wrong = [fault for line in _asked_for() if (fault := _fault_of(line)) is not None]
    if wrong:
        yield fail("packages", "; ".join(wrong), SETUP)
    else:
        yield ok("packages", ", ".join(f"{name} {version(name)}" for name in SHOWN))


def _asked_for() -> list[str]:
    """By the metadata of destruct as it is installed, or by those of the checkout, which runs without."""
    try:
        return requires("destruct") or []
    except PackageNotFoundError:
        pass
    try:
        content = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
    except OSError:
        return ["destruct"]
    return list(content["project"]["dependencies"])


def _fault_of(line: str) -> str | None:
    """What is wrong with a package, from a line such as `numpy>=2,<3`; None for nothing."""
    name = re.split(r"[^\w.-]", line, maxsplit=1)[0]
    if "extra ==" in line:
        return None
    try:
        here = version(name)
    except PackageNotFoundError:
        return f"{name} is not installed"
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return f"{name} {here} cannot be compared with what is asked for: packaging is not installed"
    wanted = Requirement(line).specifier
    return None if wanted.contains(here, prereleases=True) else f"{name} {here} is not {name}{wanted}"


def compiler(needed_for: str | None) -> Iterator[Finding]:
    """Whether a program in C++ can be compiled, as DeepSpeed does at the first use of what it has in C++.

    Args:
        needed_for: what does not work without; None where a run only gets slower.
    """
    command = shlex.split(os.environ.get("CXX", "")) or ["c++"]
    fault = _does_not_compile(command, "small.cpp", CPP)
    remedy = "install it (on Debian: apt-get install g++), or let CXX name another one"
    if fault is None:
        yield ok("compiler", f"{shlex.join(command)} compiles")
    elif needed_for is None:
        yield warn("compiler", f"{fault}; ranks on one CPU machine do without DeepSpeed's shared memory", remedy)
    else:
        yield fail("compiler", f"{fault}; {needed_for} needs one", remedy)


def triton_compiler() -> Iterator[Finding]:
    """Whether a program in C that knows Python can be compiled, as Triton does before its first kernel."""
    command = [os.environ.get("CC") or ("gcc" if shutil.which("gcc") else "clang")]  # not split, as Triton does not
    include = sysconfig.get_path("include")
    fault = _does_not_compile([*command, f"-I{include}"], "small.c", "#include <Python.h>\nint f;\n")
    if fault is None:
        yield ok("compiler: triton", f"{command[0]} compiles, with {include}/Python.h")
    else:
        remedy = (
            "install gcc and Python's headers (on Debian: apt-get install gcc python3-dev), or let CC name another one"
        )
        yield fail("compiler: triton", f"{fault}; Triton, for the fused loss on a GPU, needs one", remedy)


def _does_not_compile(command: list[str], name: str, text: str) -> str | None:
    """None where a shared library can be made of a small program; else what is wrong with the compiler."""
    if shutil.which(command[0]) is None:
        return f"the compiler {command[0]} is not installed"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, name)
        source.write_text(text, encoding="utf-8")
        line = [*command, "-shared", "-fPIC", "-o", f"{folder}/small.so", str(source)]
        try:
            done = subprocess.run(line, capture_output=True, text=True, timeout=COMPILING_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"the compiler {command[0]} does not compile: {error}"
    said = next(iter(done.stderr.strip().splitlines()), f"exit {done.returncode}")
    return None if done.returncode == 0 else f"the compiler {command[0]} does not compile: {said}"


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
