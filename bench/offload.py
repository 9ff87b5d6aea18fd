"""Weights and optimizer in the host's memory against in files: memory and seconds of an update on two CPU ranks.

    python -m bench.offload --limit-mib 4500 --files /mnt/nvme

With a limit (root, cgroup v1 or v2) both ranks and the pages of their files share so much memory.  One JSON line.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.plan_accuracy import CONFIG, PHASES, ROOT, Row
from destruct.progress import tracked

RANKS = 2


@contextmanager
def limited(mib: int | None) -> Iterator[list[str]]:
    """The beginning of a command line that runs the rest of it in so much memory."""
    if mib is None:
        yield []
        return
    v1 = Path("/sys/fs/cgroup/memory")
    group = (v1 if v1.is_dir() else Path("/sys/fs/cgroup")) / f"destruct-bench-{os.getpid()}"
    group.mkdir()
    try:
        (group / ("memory.limit_in_bytes" if v1.is_dir() else "memory.max")).write_text(str(mib * 2**20))
        yield ["bash", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "limited"]
    finally:
        group.rmdir()


def measure(device: str, layers: int, limit_mib: int | None, files: Path | None) -> dict[str, object]:
    """MiB of anonymous memory of a rank, and seconds of the last update's phases; or that it was ended."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    with tempfile.TemporaryDirectory(dir=files) as scratch, limited(limit_mib) as prefix:
        overrides = Row(device, RANKS, layers, offload=device).overrides(Path(scratch))
        command = [*prefix, *launcher, "-m", "bench.watched_rank", "memory", str(CONFIG), *overrides]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        return {"ended": done.stderr.strip().splitlines()[-1] if "SIGKILL" not in done.stderr else "killed"}
    phases = json.loads(done.stdout.splitlines()[-1])
    seconds = {phase: round(phases[phase]["seconds"], 2) for phase in PHASES}
    return {"anonymous_mib": round(max(phases[phase]["peak_mib"] for phase in PHASES))} | seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=10, help="of both networks")
    parser.add_argument("--limit-mib", type=int, help="memory of both ranks together")
    parser.add_argument("--files", type=Path, help="folder for the files (default: the temporary one)")
    parser.add_argument("--times", type=int, default=2, help="runs of each, by turns")
    options = parser.parse_args()
    rows = [
        {"device": device} | measure(device, options.layers, options.limit_mib, options.files)
        for device in tracked(["cpu", "nvme"] * options.times, "offload", "runs")
    ]
    print(json.dumps({"layers": options.layers, "limit_mib": options.limit_mib, "rows": rows}))


if __name__ == "__main__":
    main()
