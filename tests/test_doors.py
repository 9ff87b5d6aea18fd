"""The console script: what it lists, where it leads, and what it says of a command that there is none of."""

import importlib
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from destruct.doors import DOORS, main, module_of, told
from tests.test_layout import LAYER

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = (
    "commands: train, plan, doctor, config, explain, report, launch, checkpoints, evaluate, export, generate, "
    "verify_resume; destruct --help says more"
)
HEAVY = {"torch", "deepspeed", "transformers", "datasets", "numpy", "pydantic"}


def go(folder: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """`destruct ...` in a process of its own: the process, and the modules it imported."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "destruct.doors", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    marked = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    done.stderr = "".join(line + "\n" for line in done.stderr.splitlines() if line not in marked)
    return done, {line.rpartition("|")[2].strip() for line in marked}


def test_the_script_of_pyproject_is_there():
    script = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["destruct"]
    module, _, function = script.partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_every_command_of_the_package_is_a_door_and_every_door_leads_somewhere():
    there = {
        path.removesuffix("/__main__.py").removesuffix(".py")
        for path, layer in LAYER.items()
        if layer == 5 and (ROOT / "destruct" / path).is_file()
    }
    assert set(DOORS) == there - {"doors"}
    assert all(callable(module_of("destruct", name).main) for name in DOORS)


def test_with_standard_output_closed_a_door_ends_as_ever(tmp_path):
    line = f"{sys.executable} -m destruct.doors config show --config {ROOT}/configs/local.yaml >&-"
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_help_lists_the_commands_and_imports_nothing_that_takes_long(tmp_path):
    done, modules = go(tmp_path, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")] == list(DOORS)
    assert "destruct.errors" in modules and not modules & HEAVY


@pytest.mark.parametrize("door", ["evaluate", "export", "generate"])
def test_the_help_of_doors_that_read_models_waits_for_no_torch(tmp_path, door):
    done, modules = go(tmp_path, door, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert not modules & {"torch", "deepspeed", "transformers", "datasets", "safetensors"}


@pytest.mark.parametrize(
    ("arguments", "problem", "remedy"),
    [
        (["explian", "local"], "'explian' is not a command", "did you mean 'explain'?"),
        (["Train"], "'Train' is not a command", "did you mean 'train'?"),
        (["xyz"], "'xyz' is not a command", COMMANDS),
        ([], "no command is given", COMMANDS),
    ],
)
def test_an_unknown_command_is_told_with_the_nearest_one(capsys, arguments, problem, remedy):
    assert main(arguments) == 2
    assert capsys.readouterr() == ("", f"destruct: {problem}\n  remedy: {remedy}\n")


def test_a_door_takes_the_rest_of_the_line_and_its_exit_code_is_the_commands(tmp_path):
    done, modules = go(tmp_path, "train", "--config", "no.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr
        == "destruct: no.yaml cannot be read: No such file or directory\n  remedy: name a file that exists\n"
    )
    assert "destruct.explain" not in modules and "torch" not in modules
    helped, _ = go(tmp_path, "explain", "--help")
    assert helped.returncode == 0 and "--strategy" in helped.stdout and not helped.stderr


HEEDING = """
import runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # who started the tests may ignore it
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__")
"""


def opened(pipe: Path) -> int | None:
    """The end of a pipe that is written to; None where nobody reads from it yet."""
    try:
        return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return None


@pytest.mark.parametrize("door", ["plan", "config show", "train"])
@pytest.mark.parametrize("way", ["destruct.doors", "destruct"])
def test_ctrl_c_is_one_line_and_130_at_every_door(tmp_path, door, way):
    """A config that never comes: a pipe to which nobody writes."""
    os.mkfifo(tmp_path / "config.yaml")
    name, *rest = door.split()
    module = [f"{way}.{name}"] if way == "destruct" else [way, name]
    process = subprocess.Popen(
        [sys.executable, "-c", HEEDING, *module, *rest, "--config", str(tmp_path / "config.yaml")],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while (writer := opened(tmp_path / "config.yaml")) is None:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == ("", "destruct: interrupted\n")
    assert process.returncode == 130
    os.close(writer)


def test_a_ctrl_c_of_which_a_library_makes_an_error_of_its_own_is_one_still(capsys):
    """numpy and torch do, where it comes while they are imported."""

    def imported() -> int:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("cannot load module more than once per process") from None
        return 0

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # who started the tests may ignore it
    try:
        assert told(imported) == 130
        assert capsys.readouterr().err == "destruct: interrupted\n"
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        assert told(lambda: signal.raise_signal(signal.SIGINT) or 0) == 0
    finally:
        signal.signal(signal.SIGINT, before)
    with pytest.raises(ImportError, match="No module named 'no_module'"):
        told(lambda: int(importlib.import_module("no_module").__name__))


class Finalized:
    """Calls something as soon as nobody has it any more."""

    def __init__(self, act: Callable[[], object]):
        self._act = act

    def __del__(self):
        self._act()


def test_a_ctrl_c_that_a_finalizer_swallows_comes_again(capsys, monkeypatch):
    """Python calls some while it imports: 0.2% of that time."""
    others = []

    def theirs(lost: "sys.UnraisableHookArgs") -> None:
        others.append(lost.exc_type)

    monkeypatch.setattr(sys, "unraisablehook", theirs)

    def imported() -> int:
        Finalized(lambda: 1 / 0)
        Finalized(lambda: signal.raise_signal(signal.SIGINT))
        time.sleep(30)
        return 0

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # who started the tests may ignore it
    try:
        assert told(imported) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "destruct: interrupted\n"
    assert others == [ZeroDivisionError] and sys.unraisablehook is theirs
