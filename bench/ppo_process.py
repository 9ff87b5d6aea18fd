"""What a side of bench/ppo_iteration.py tells of its own process: seconds of each iteration, and memory."""

import json
import re
import time
from pathlib import Path


def memory_mib(which: str) -> float:
    """`VmRSS`, or its peak `VmHWM`, of this process."""
    found = re.search(rf"{which}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert found is not None
    return int(found[1]) / 1024


def forget_peak() -> None:
    """The kernel's peak of this process is what it has now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


class Told:
    """Seconds between calls of `lap`, and the peak of memory beside what lies there always.

    Make it when everything is imported and no model exists.
    """

    def __init__(self) -> None:
        self.imports_mib = memory_mib("VmRSS")
        self.seconds: list[float] = []
        self.lengths: list[float] = []  # mean tokens of a response, of each iteration
        self.begun = 0.0

    def begin(self) -> None:
        """The first iteration begins: what the peak was before is forgotten."""
        forget_peak()
        self.begun = time.perf_counter()

    def lap(self) -> None:
        """An iteration has ended, and the next one begins."""
        now = time.perf_counter()
        self.seconds.append(now - self.begun)
        self.begun = time.perf_counter()

    def tell(self, state_bytes: int) -> None:
        """Print it as one JSON line.

        Args:
            state_bytes: weights, masters, moments and gradients of all networks.
        """
        peak = memory_mib("VmHWM")
        figures = {
            "seconds": self.seconds,
            "mean_lengths": self.lengths,
            "rss_mib": peak,
            "state_mib": state_bytes / 2**20,
            "transient_mib": peak - self.imports_mib - state_bytes / 2**20,
        }
        print(json.dumps(figures), flush=True)
