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
from destruct.checkup.machine import OF_A_LAUNCHER
from destruct.data.hub_faults import first_line
from destruct.engine import topology as groups
from destruct.errors import DestructError
from destruct.exits import Exit, leave
from destruct.launching.processes import descendants, send
from destruct.launching.surroundings import free_port

FLOATS = 2**22  # 16 MiB
TIMES = 5
IMPORTS_S, PATIENCE_S = 300.0, 90.0
"""Torch may come over a cold network file system; from then on it is a matter of a second."""

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
    # By an address, as DeepSpeed's launcher does: --standalone looks for the machine by its name.
    command = [sys.executable, "-m", "torch.distributed.run", "--master-addr=127.0.0.1"]
    command += [f"--master-port={free_port()}", f"--nproc-per-node={ranks}", "-m", "destruct.checkup.ranks"]
    with tempfile.TemporaryDirectory(prefix="destruct-doctor-") as name:
        folder = Path(name)
        code = run([*command, name], folder)
        begun, report = (folder / "begun").exists(), folder / "report.json"
        said = (folder / "stderr").read_text(encoding="utf-8", errors="replace")
        found = json.loads(report.read_text(encoding="utf-8")) if code == 0 and report.exists() else None
    if code is None:
        words = f"did not meet, or add up, in {PATIENCE_S:.0f} s" if begun else f"took over {IMPORTS_S:.0f} s to import"
        yield fail("all-reduce", f"{ranks} ranks over {backend} {words}", remedy)
        return
    if found is None:
        last = next((line for line in said.splitlines() if line.startswith("destruct: ")), said.strip()[-300:])
        yield fail("all-reduce", f"{ranks} ranks over {backend} failed: {last.removeprefix('destruct: ')}", remedy)
        return
    words = f"{ranks} ranks over {backend}, 16 MiB in {found['seconds'] * 1e3:.1f} ms: {found['gb_s']:.2f} GB/s"
    if found["right"]:
        slow = ranks > 1 and found["gb_s"] < SLOW_GB_S[backend]
        yield warn("all-reduce", f"{words}, which is slow", remedy) if slow else ok("all-reduce", words)
    else:
        yield fail("all-reduce", f"{words}, and the sum is wrong", "do not train on this machine; look at its memory")


def run(command: list[str], folder: Path) -> int | None:
    """The exit code of torchrun; None where it is ended, with all below it, as it took too long.

    Args:
        folder: for what it says, `stderr`, and where its ranks make `begun` once they have imported what they need.
    """
    clean = {name: value for name, value in os.environ.items() if name not in OF_A_LAUNCHER}
    with (folder / "stderr").open("wb") as said:
        process = subprocess.Popen(
            command,
            env=clean | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,
        )
    try:
        until = time.monotonic() + IMPORTS_S
        while process.poll() is None and not (folder / "begun").exists() and time.monotonic() < until:
            time.sleep(0.05)
        return process.wait(PATIENCE_S if (folder / "begun").exists() else 0)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            # torchrun gives each rank a session of its own, so that its group is not all of them.
            send([*descendants(process.pid), process.pid], signal.SIGKILL)
            process.wait()


def main() -> None:
    """One rank of `together`."""
    folder = Path(sys.argv[1])
    (folder / "begun").touch()
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
        (folder / "report.json").write_text(json.dumps(content), encoding="utf-8")
    groups.stop()
    leave(Exit.DONE)


if __name__ == "__main__":
    main()
