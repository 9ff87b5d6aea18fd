"""Start a run: `destruct launch local|slurm|hosts --config FILE ... [key.sub=value ...]`."""

import sys

from destruct.doors import through
from destruct.exits import leave

WAYS = {
    "local": "on this machine, by deepspeed, torchrun or as one process, with a log for each rank",
    "slurm": "write or submit a batch script",
    "hosts": "say what to type on each of several hosts, without Slurm",
}
"""Sub-commands -> what they do; each is the module of its name in `launching/`, with `main(arguments) -> exit code`."""


def main(arguments: list[str] | None = None) -> int:
    """Launch; returns the exit code."""
    return through("destruct launch", "destruct.launching", WAYS, sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    leave(main())
