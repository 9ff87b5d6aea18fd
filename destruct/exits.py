"""How a process ends: the exit codes of every command, and the way out."""

import atexit
import contextlib
import enum
import os
import sys
from typing import NoReturn


class Exit(enum.IntEnum):
    """Exit codes of every command, `python -m destruct.<command>`; schedulers decide by them whether to requeue."""

    DONE = 0
    CONFIG = 2
    ENVIRONMENT = 3
    PREEMPTED = 75
    RANK_FAILED = 76
    DIVERGED = 77


def leave(code: int) -> NoReturn:
    """End this process without tearing the interpreter down, after what `atexit` holds and with both outputs flushed.

    DeepSpeed never lets go of its process groups, so gloo's threads outlive `destroy_process_group`.  One of them that
    waits for the interpreter's lock when the teardown begins aborts the process: a finished rank would count as failed.

    Source: https://github.com/pytorch/pytorch/issues/190489
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        # The reader of a pipe may be gone, or the stream closed (None).
        with contextlib.suppress(OSError, AttributeError):
            stream.flush()
    os._exit(code)
