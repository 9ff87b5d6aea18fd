"""Ranks on this machine, started for a few seconds: do they find each other, add up right, and how fast."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from destruct.checkup.finding import Finding, fail, ok, warn
from destruct.data.hub_faults import first_line
from destruct.engine import topology as groups
from destruct.errors import DestructError
from destruct.exits import Exit, leave

FLOATS = 2**22  # 16 MiB
TIMES = 5
PATIENCE_S = 90.0
SLOW_GB_S = {"gloo": 0.1, "nccl": 5.0}
"""Of an all-reduce between ranks of one machine: far below what any has."""


def together(ranks: int) -> Iterator[Finding]:
    """An all-reduce between so many ranks of this machine."""
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    remedy = "read the lines above; with NCCL_DEBUG=INFO, or TORCH_DISTRIBUTED_DEBUG=DETAIL, they say more"
    if torch.cuda.is_available() and torch.cuda.device_count() < ranks:
        words = f"{ranks} ranks on {torch.cuda.device_count()} GPU(s)"
        yield fail("all-reduce", words, f"--ranks {torch.cuda.device_count()}")
        return
    with tempfile.TemporaryDirectory(prefix="destruct-doctor-") as folder:
        report = Path(folder, "report.json")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        command += ["-m", "destruct.checkup.ranks", str(report)]
        left_over = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        clean = {name: value for name, value in os.environ.items() if name not in left_over}
        process = subprocess.Popen(
            command,
            env=clean | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            _, said = process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            words = f"{ranks} ranks over {backend} did not meet, or add up, in {PATIENCE_S:.0f} s"
            yield fail("all-reduce", words, remedy)
            return
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        if process.returncode != 0 or not report.exists():
            last = next((line for line in said.splitlines() if line.startswith("destruct: ")), said.strip()[-300:])
            yield fail("all-reduce", f"{ranks} ranks over {backend} failed: {last.removeprefix('destruct: ')}", remedy)
            return
        found = json.loads(report.read_text(encoding="utf-8"))
    words = f"{ranks} ranks over {backend}, 16 MiB in {found['seconds'] * 1e3:.1f} ms: {found['gb_s']:.2f} GB/s"
    if found["right"]:
        slow = ranks > 1 and found["gb_s"] < SLOW_GB_S[backend]
        yield warn("all-reduce", f"{words}, which is slow", remedy) if slow else ok("all-reduce", words)
    else:
        yield fail("all-reduce", f"{words}, and the sum is wrong", "do not train on this machine; look at its memory")


def main() -> None:
    """One rank of `together`."""
    try:
        topology = groups.start(timeout_s=PATIENCE_S)
    except (DestructError, RuntimeError) as error:  # the latter where an interface is not there
        print(f"destruct: {first_line(error)}", file=sys.stderr)
        leave(Exit.ENVIRONMENT)
    mine = torch.arange(FLOATS, dtype=torch.int32, device=topology.device) * (topology.rank + 1)
    seconds, right = [], True
    for _ in range(TIMES):
        topology.all_agree(True)
        begun = time.perf_counter()
        top = topology.max(mine)
        seconds.append(time.perf_counter() - begun)
        right = right and bool(torch.equal(top, mine // (topology.rank + 1) * topology.world_size))
    right = topology.all_agree(right)
    if topology.is_first:
        best = min(seconds)
        # What a ring sends and gets per rank: 2 (N - 1) / N of the bytes.
        sent = 2 * (topology.world_size - 1) / topology.world_size * 4 * FLOATS
        content = {"seconds": best, "gb_s": sent / best / 1e9, "right": right}
        Path(sys.argv[1]).write_text(json.dumps(content), encoding="utf-8")
    groups.stop()
    leave(Exit.DONE)


if __name__ == "__main__":
    main()
