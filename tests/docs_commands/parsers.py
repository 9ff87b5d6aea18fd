"""Command lines read by the very parsers that they are for, without what would come after."""

import contextlib
import io
import json
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from destruct import doors
from tests.docs_commands.session import environment

PARSED = 90
SHIM = f"""
import argparse, json, runpy, sys
def ended(read):
    def then(self, *given, **named):
        print(json.dumps(vars(read(self, *given, **named)), default=str))
        raise SystemExit({PARSED})
    return then
for name in ("parse_args", "parse_intermixed_args"):
    setattr(argparse.ArgumentParser, name, ended(getattr(argparse.ArgumentParser, name)))
target, sys.argv = sys.argv[1], sys.argv[1:]
(runpy.run_path if target.endswith(".py") else runpy.run_module)(target, run_name="__main__")
"""
"""Runs a module up to the point where it has read its command line."""


class Refused(Exception):
    """Why a command would not be read."""


class Parsed(BaseException):
    """A command line has been read: no `except Exception` on the way out is to catch it."""


@cache
def read_by(module: str, arguments: tuple[str, ...], checkout: Path) -> dict[str, Any]:
    """What a script or module of this checkout made of its command line; nothing where it reads none."""
    file = checkout / (module if module.endswith(".py") else f"{module.replace('.', '/')}.py")
    if not file.is_file():
        raise Refused(f"there is no {file.relative_to(checkout)}")
    if "ArgumentParser" not in file.read_text(encoding="utf-8"):  # it would be run
        return {}
    done = subprocess.run(
        [sys.executable, "-c", SHIM, module, *arguments],
        cwd=checkout,
        env=environment(checkout),
        capture_output=True,
        text=True,
        timeout=120,
    )
    if done.returncode != PARSED:
        raise Refused(f"{module}: {(done.stderr or done.stdout).strip()[-400:]}")
    return json.loads(done.stdout.splitlines()[-1])


def parsed(arguments: list[str], checkout: Path) -> Namespace | None:
    """What a door's parser makes of its arguments; None where the answer is a help."""
    before = {name: getattr(ArgumentParser, name) for name in ("parse_args", "parse_intermixed_args")}

    def ended(read: Callable[..., Namespace]) -> Callable[..., Namespace]:
        def then(self: ArgumentParser, *given: Any, **named: Any) -> Namespace:
            raise Parsed(read(self, *given, **named))

        return then

    said = io.StringIO()
    for name, read in before.items():
        setattr(ArgumentParser, name, ended(read))
    try:
        with contextlib.chdir(checkout), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = doors.main(arguments)
    except Parsed as end:
        return end.args[0]
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        for name, read in before.items():
            setattr(ArgumentParser, name, read)
    if code:
        raise Refused(said.getvalue().strip())
    return None
