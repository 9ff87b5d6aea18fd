"""What the server of tests/forked.py imports once, for all that is forked from it."""

import atexit
import os

import destruct.build
import destruct.checkpoint.store
import destruct.engine.deepspeed
import destruct.engine.fsdp
import destruct.loop  # noqa: F401

SERVER = os.getpid()


def leave_without_a_word() -> None:
    """Triton says at the interpreter's end what it leaks: 40 lines, after the last one of pytest."""
    if os.getpid() == SERVER:
        os._exit(0)


atexit.register(leave_without_a_word)
