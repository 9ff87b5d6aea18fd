"""Processes and ranks with torch already imported, which takes longer than most of what they do: each is forked from a
server that has nothing else in it."""

import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import connection, forkserver
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any
from unittest.mock import patch

from destruct.launching.surroundings import free_port
from tests.distributed.launching import TIMEOUT_S, environment

PATIENCE_S = 120


def server() -> ForkServerContext:
    """What processes are forked from; it starts with the first of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.forked_imports"])
    # CUDA that was asked for its devices in another way would not survive a fork.
    variables = environment() | {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    with patch.dict(os.environ, variables, clear=True):
        forkserver.ensure_running()
    return context


@dataclass(frozen=True, slots=True)
class Done:
    """How a process ended, and what it said."""

    code: int | None  # below 0 the signal; None where it had to be killed
    out: str
    err: str


def start(folder: Path, act: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Begin `act(*arguments)` in a process whose outputs are files of `folder`."""
    process = server().Process(target=_enter, args=(folder, act, arguments))
    process.start()
    return process


def end(folder: Path, process: BaseProcess) -> Done:
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


def run_ranks(count: int, worker: str, *arguments: str) -> CompletedProcess[str]:
    """Run a module as so many ranks over gloo; the first that fails ends the others, as under a launcher.

    They have this process's variables, but what torch and its like read when they are imported has been read.

    Returns:
        its code, that of the first that failed, and what all of them said.
    """
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / str(rank) for rank in range(count)]
        port, processes = free_port(), []
        for rank, folder in enumerate(folders):
            folder.mkdir()
            for output in ("out", "err"):  # one may be ended before it has opened them
                (folder / output).touch()
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
            place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            variables = environment() | {key: str(value) for key, value in place.items()}
            processes.append(start(folder, _rank, variables, worker, arguments))
        code = _wait(processes)
        said = ["".join((folder / name).read_text(errors="replace") for folder in folders) for name in ("out", "err")]
    return CompletedProcess([worker, *arguments], code, *said)


def train_ranks(count: int, config: Path | str, *overrides: str) -> CompletedProcess[str]:
    """Train on so many ranks; no launcher looks after them, nor names the one that failed."""
    return run_ranks(count, "destruct.train", "--config", str(config), *overrides)


def _wait(processes: list[BaseProcess]) -> int:
    """Until all have ended, one has failed, or there is no time left: then the others are killed."""
    until = time.monotonic() + TIMEOUT_S
    try:
        while (alive := [each for each in processes if each.exitcode is None]) and time.monotonic() < until:
            connection.wait([each.sentinel for each in alive], timeout=1)
            if any(each.exitcode for each in processes):
                break
        failed = [each.exitcode for each in processes if each.exitcode]
    finally:
        for each in processes:
            each.kill()
            each.join()
    if failed:
        return failed[0]
    return -signal.SIGKILL if alive else 0


def _rank(variables: dict[str, str], worker: str, arguments: tuple[str, ...]) -> None:
    os.environ.update(variables)
    sys.argv = [worker, *arguments]
    runpy.run_module(worker, run_name="__main__", alter_sys=True)
