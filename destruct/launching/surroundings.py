"""What a launcher finds on this machine, and what it lets its ranks find.

Standard library only, and for any python3: `launch/bin/deepspeed` runs with whichever is first on PATH.
"""

import glob
import os
import random
import shutil
import socket
import subprocess
from collections.abc import Mapping

ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/dri", "/dev/davinci*", "/dev/accel*", "/dev/dxg")
"""Device files, one of which is there where DeepSpeed could find an accelerator."""


def with_accelerator(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment, in which DeepSpeed learns that there is no accelerator; else it warns twice that it guessed."""
    if any(glob.glob(pattern) for pattern in ACCELERATORS):
        return dict(environment)
    return {"DS_ACCELERATOR": "cpu", **environment}


def gpus() -> int:
    """GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return sum(line.startswith("GPU ") for line in listed.splitlines())


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
