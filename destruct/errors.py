"""The one exception a person is meant to read, the exit codes of every door, and the way out of one."""

import atexit
import contextlib
import enum
import os
import sys
from typing import NoReturn


class Exit(enum.IntEnum):
    """Exit codes of every `python -m destruct.<door>`; schedulers decide by them whether to requeue."""

    DONE = 0
    CONFIG = 2
    ENVIRONMENT = 3
    PREEMPTED = 75
    RANK_FAILED = 76
    DIVERGED = 77


class DestructError(Exception):
    """A mistake the user can put right.

    Args:
        problem: one line saying what is wrong, with names and figures.
        remedy: one line saying what to do about it.
        exit_code: `Exit.CONFIG`, or `Exit.ENVIRONMENT` where the machine and not the config is at fault.
    """

    def __init__(self, problem: str, remedy: str, exit_code: Exit = Exit.CONFIG):
        # All of them, or the exception does not unpickle in another process.
        super().__init__(problem, remedy, exit_code)
        self.problem, self.remedy, self.exit_code = problem, remedy, exit_code

    def __str__(self) -> str:
        return f"{self.problem}\n  remedy: {self.remedy}"


def leave(code: int) -> NoReturn:
    """End this process without tearing the interpreter down, after what `atexit` holds and with both outputs flushed.

    DeepSpeed never lets go of its process groups, so gloo's threads outlive `destroy_process_group`.  One of them that
    waits for the interpreter's lock when the teardown begins aborts the process: a finished rank would count as failed.

    Source: https://github.com/pytorch/pytorch/issues/190489
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # the reader of a pipe may be gone
            stream.flush()
    os._exit(code)
