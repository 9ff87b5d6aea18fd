"""Short processes with torch already imported: each is forked from a server that has nothing else in it."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

PATIENCE_S = 120


def server() -> ForkServerContext:
    """What processes are forked from; it starts with the first of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["destruct.build", "destruct.loop", "destruct.checkpoint.store"])
    return context


@dataclass(frozen=True, slots=True)
class Done:
    """How a process ended, and what it said."""

    code: int | None  # below 0 the signal; None where it had to be killed
    out: str
    err: str


def start(folder: Path, act: Callable[..., None], *arguments: Any) -> multiprocessing.process.BaseProcess:
    """Begin `act(*arguments)` in a process whose outputs are files of `folder`."""
    process = server().Process(target=_enter, args=(folder, act, arguments))
    process.start()
    return process


def end(folder: Path, process: multiprocessing.process.BaseProcess) -> Done:
    """Wait for it."""
    process.join(PATIENCE_S)
    code = process.exitcode
    if code is None:
        process.kill()
        process.join()
    said = [(folder / name).read_text(encoding="utf-8", errors="replace") for name in ("out", "err")]
    return Done(code, *said)


def _enter(folder: Path, act: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    for name, handle in (("out", 1), ("err", 2)):
        file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, handle)
        os.close(file)
    act(*arguments)


def train(arguments: list[str]) -> None:
    """`python -m destruct.train`, in this process."""
    from destruct.train import enter

    sys.argv[1:] = arguments
    enter()
