"""The console script `destruct`: `destruct COMMAND ...` is `python -m destruct.COMMAND ...`."""

import argparse
import difflib
import errno
import importlib
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, NoReturn

from destruct.errors import DestructError
from destruct.exits import Exit, leave

DOORS = {
    "train": "train on one rank (under a launcher: deepspeed --num_gpus N -m destruct.train ...)",
    "plan": "memory, collectives, time and disk of a run before it starts",
    "doctor": "look at a machine before a run does: packages, GPUs, ranks, disk, hub, Slurm, the config",
    "config": "the configuration of a run: show it, explain its keys, compare two, a schema for editors",
    "explain": "what each source of a run taught, and why it has its weight",
    "report": "one page on a run, or on several compared: what happened, curves, texts, how to run it again",
    "launch": "start a run: on this machine, under Slurm, or on several hosts",
    "checkpoints": "a run's checkpoints: list, verify, prune, or pick the one to go on from",
    "evaluate": "how well a model does on held-out text and on prompts, alone or beside another one",
    "export": "a checkpoint as a folder of Hugging Face, for transformers and whatever reads those",
    "generate": "continue a prompt with an exported model, or with a run's newest checkpoint",
    "verify_resume": "make a short run twice, once with a resume in it, and compare all that it leaves",
}
"""Commands that there are -> what they do; each is the module of its name here, with `main(arguments) -> exit code`.

Of a package it is `__main__`, as for `python -m`.
"""


RUNS = Path("runs")
"""Where a run is looked up by its name."""

AGAIN_S = 0.01
"""Until a Ctrl-C comes again that a finalizer has swallowed."""


class Parser(argparse.ArgumentParser):
    """argparse with our two lines instead of its usage block.

    Args:
        remedy: what to write instead of arguments that cannot be read.
    """

    def __init__(self, remedy: str, **about: Any):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **about)
        self._remedy = remedy

    def error(self, message: str) -> NoReturn:
        """Raise DestructError."""
        raise DestructError(message, self._remedy)


def write_anywhere() -> None:
    """Let a terminal without Unicode get question marks, not a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def told(answer: Callable[[], int]) -> int:
    """The exit code of a command that reads and writes files; what is wrong is said in two lines."""
    write_anywhere()
    try:
        with ctrl_c_kept():
            code = answer()
        with suppress(BrokenPipeError):  # its reader has had enough
            print(end="", flush=True)  # what is still to be written may find the disk full; it may be closed, too
        return code
    except DestructError as error:
        print(f"destruct: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "make room on that disk" if full else "have the right to read and to write there"
        print(f"destruct: {error}\n  remedy: {remedy}", file=sys.stderr)
        return Exit.ENVIRONMENT
    except KeyboardInterrupt:
        return interrupted()


@contextmanager
def ctrl_c_kept() -> Iterator[None]:
    """Let any error after a Ctrl-C be KeyboardInterrupt: a library being imported makes one of its own of that.

    Python prints and forgets one that comes while it calls a finalizer, as it does while it imports: it comes again a
    moment later.
    """
    before, came = signal.getsignal(signal.SIGINT), False
    unraisable = sys.unraisablehook
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        before(number, frame)

    def again(lost: "sys.UnraisableHookArgs") -> None:
        if not isinstance(lost.exc_value, KeyboardInterrupt):
            return unraisable(lost)
        threading.Timer(AGAIN_S, os.kill, (os.getpid(), signal.SIGINT)).start()

    signal.signal(signal.SIGINT, note)
    sys.unraisablehook = again
    try:
        yield
    except Exception as error:
        if came:
            raise KeyboardInterrupt from error
        raise
    finally:
        sys.unraisablehook = unraisable
        signal.signal(signal.SIGINT, before)


def interrupted() -> int:
    """Say on one line that Ctrl-C ended a command; returns its exit code."""
    with suppress(OSError):
        print("destruct: interrupted", file=sys.stderr)
    return 128 + signal.SIGINT


def find_run(name: str) -> Path:
    """The folder of a run.

    Raises:
        DestructError: there is none; the remedy names those that are in runs/.
    """
    for folder in (Path(name), RUNS / name):
        if folder.is_dir():
            return folder
    here = sorted(path.parent.name for path in RUNS.glob("*/resolved.yaml"))
    remedy = f"name a folder, or one of {RUNS}/: {', '.join(here)}" if here else "name the folder of a run"
    raise DestructError(f"there is no run {name}, neither a folder of that name nor one in {RUNS}/", remedy)


def main(arguments: list[str] | None = None) -> int:
    """Go through the door that the first argument names, with the rest; returns its exit code."""
    try:
        with ctrl_c_kept():
            return through("destruct", "destruct", DOORS, sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:  # while the module of a door is imported, or from a door that has no words for it
        return interrupted()


def through(program: str, package: str, doors: dict[str, str], arguments: list[str]) -> int:
    """Call `main` of the module of a package that the first argument names, with the rest; returns its exit code.

    Args:
        program: what the person writes before that argument.
        doors: what each module does.
    """
    command, *rest = arguments or [""]
    if command in ("-h", "--help"):
        print(_help(program, doors))
        return 0
    if command not in doors:
        error = _unknown(command, program, doors)
        print(f"destruct: {error}", file=sys.stderr)
        return error.exit_code
    # Only now, as one of them may take long to import.
    return module_of(package, command).main(rest)


def module_of(package: str, command: str) -> ModuleType:
    """The module that holds `main` of a command."""
    module = importlib.import_module(f"{package}.{command}")
    return importlib.import_module(f"{module.__name__}.__main__") if hasattr(module, "__path__") else module


def _help(program: str, doors: dict[str, str]) -> str:
    lines = [f"  {name:<15}{what}" for name, what in doors.items()]
    return "\n".join(
        [f"usage: {program} COMMAND ...", "", "commands:", *lines, "", f"{program} COMMAND --help says more."]
    )


def _unknown(command: str, program: str, doors: dict[str, str]) -> DestructError:
    known = f"commands: {', '.join(doors)}; {program} --help says more"
    if not command:
        return DestructError("no command is given", known)
    near = difflib.get_close_matches(command.lower(), doors, n=1)
    return DestructError(f"{command!r} is not a command", f"did you mean {near[0]!r}?" if near else known)


def enter() -> NoReturn:
    """What the console script calls."""
    leave(main())


if __name__ == "__main__":
    enter()
