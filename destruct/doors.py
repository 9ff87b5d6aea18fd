"""The console script `destruct`: `destruct COMMAND ...` is `python -m destruct.COMMAND ...`."""

import argparse
import difflib
import importlib
import io
import sys
from typing import Any, NoReturn

from destruct.errors import DestructError
from destruct.exits import leave

DOORS = {
    "train": "train on one rank (under a launcher: deepspeed --num_gpus N -m destruct.train ...)",
    "plan": "memory, collectives, time and disk of a run before it starts",
    "explain": "what each source of a run taught, and why it has its weight",
}
"""Commands that there are -> what they do; each is the module of its name here, with `main(arguments) -> exit code`."""


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


def main(arguments: list[str] | None = None) -> int:
    """Go through the door that the first argument names, with the rest; returns its exit code."""
    command, *rest = (sys.argv[1:] if arguments is None else arguments) or [""]
    if command in ("-h", "--help"):
        print(_help())
        return 0
    if command not in DOORS:
        error = _unknown(command)
        print(f"destruct: {error}", file=sys.stderr)
        return error.exit_code
    # Only now, as one of them may take long to import.
    return importlib.import_module(f"destruct.{command}").main(rest)


def _help() -> str:
    lines = [f"  {name:<10}{what}" for name, what in DOORS.items()]
    return "\n".join(["usage: destruct COMMAND ...", "", "commands:", *lines, "", "destruct COMMAND --help says more."])


def _unknown(command: str) -> DestructError:
    known = f"commands: {', '.join(DOORS)}; destruct --help says more"
    if not command:
        return DestructError("no command is given", known)
    near = difflib.get_close_matches(command.lower(), DOORS, n=1)
    return DestructError(f"{command!r} is not a command", f"did you mean {near[0]!r}?" if near else known)


def enter() -> NoReturn:
    """What the console script calls."""
    leave(main())


if __name__ == "__main__":
    enter()
