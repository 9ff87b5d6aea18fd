"""What both ranks do for test_leaving.py: rank 1 ends while a thread of gloo waits for the interpreter's lock."""

import atexit
import ctypes
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    # First registered is last called: twice 3 s in C, without the lock ever being offered (`PyDLL` keeps it).
    for _ in range(2):
        atexit.register(ctypes.PyDLL(None).usleep, 3_000_000)

import torch
import torch.distributed as dist

from destruct.engine import topology as ranks
from destruct.exits import Exit, leave


def main() -> None:
    topology = ranks.start(timeout_s=60)
    at_the_door = Path(sys.argv[1]) / "at the door"
    shared = torch.ones(8)
    if topology.is_first:
        while not at_the_door.exists():
            time.sleep(0.01)
        time.sleep(0.3)
        dist.all_reduce(shared)
        (Path(sys.argv[1]) / "sum").write_text(str(shared.sum().item()), encoding="utf-8")
    else:
        # gloo's thread finishes it during the second C call, and then holds the last reference to it.
        dist.all_reduce(shared, async_op=True)
        torch.held = dist.group.WORLD  # as DeepSpeed does
        atexit.register(at_the_door.touch)
    ranks.stop()
    leave(Exit.DONE)


if __name__ == "__main__":
    main()
