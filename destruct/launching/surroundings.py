"""What a launcher finds on this machine, and what it lets its ranks find.

Standard library only, and for python3 from 3.9 on: `launch/bin/deepspeed` runs with whichever is first on PATH.
"""

import glob
import itertools
import os
import random
import socket
from collections.abc import Mapping

DEVICES = "DESTRUCT_CUDA_VISIBLE_DEVICES"
"""Where ranks find the person's CUDA_VISIBLE_DEVICES, which DeepSpeed's launcher takes away with --num_gpus."""

MOST_RANKS = 1024
"""Of one machine, so that a misplaced digit starts no million processes."""

ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/dri", "/dev/davinci*", "/dev/accel*", "/dev/dxg")
"""Device files, one of which is there where DeepSpeed could find an accelerator."""


def with_accelerator(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment, in which DeepSpeed learns that there is no accelerator; else it warns twice that it guessed."""
    if any(glob.glob(pattern) for pattern in ACCELERATORS):
        return dict(environment)
    return {"DS_ACCELERATOR": "cpu", **environment}


def gpus(files: str = "/dev/nvidia[0-9]*") -> int:
    """GPUs of NVIDIA's that this process may use: its device files, of which CUDA_VISIBLE_DEVICES may name some."""
    here = len(glob.glob(files))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None or not here:
        return here
    named = [device.strip() for device in visible.split(",")]
    known = itertools.takewhile(lambda name: name.isdecimal() or name.startswith(("GPU-", "MIG-")), named)
    return len(list(known))  # CUDA, too, stops at the first one that it does not know


def free_port() -> int:
    """A port nobody listens on, below 32768: from there up Linux gives ports to outgoing connections at any time."""
    while True:
        port = random.SystemRandom().randrange(10000, 32768)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
