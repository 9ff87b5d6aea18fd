"""A real Slurm cluster of two nodes on this machine, and jobs on it."""

import os
import random
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.distributed.launching import ROOT, environment

SCRIPT = ROOT / "launch" / "local_slurm.sh"
NODES = "127.0.0.[1-2]"
DAEMONS = ("munged", "slurmctld", "slurmd", "slurmstepd")
TIMEOUT_S = 300
ENDED = (
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "TIMEOUT",
)
LIVES = int(os.environ.get("SLURM_LIVES", "2"))
"""Of a job that its time limit interrupts: five in `make slurm-test`, where each lasts a minute; in the whole suite a
signal takes the limit's place."""


def why_not() -> str:
    """What keeps the cluster from starting here; empty where nothing does."""
    missing = [program for program in ("munged", "slurmctld", "slurmd", "sbatch") if not shutil.which(program)]
    if missing:
        return f"{', '.join(missing)} not installed: apt-get install slurm-wlm munge"
    if os.geteuid() != 0:
        return "slurmd needs root: run this as root, or with sudo -E"
    return "" if (ROOT / ".venv").exists() else "launch/env.sh needs .venv: make setup"


ON_SLURM = [
    pytest.mark.slurm,
    pytest.mark.distributed,
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]
"""Marks of a file of tests that need the cluster."""


@dataclass(frozen=True)
class Job:
    """A job that has ended: fields of `scontrol show job`, and what it wrote."""

    fields: dict[str, str]
    log: str

    @property
    def end(self) -> tuple[str, str, str]:
        """How it ended: state, exit code, and how often it was requeued before."""
        return self.fields["JobState"], self.fields["ExitCode"], self.fields["Restarts"]


@dataclass(frozen=True)
class Cluster:
    """Where it is, and the environment of its commands."""

    folder: Path
    variables: dict[str, str]

    def call(self, *command: str, **variables: str) -> str:
        """Standard output of a command typed in the checkout."""
        done = subprocess.run(
            command, cwd=ROOT, env=self.variables | variables, capture_output=True, text=True, timeout=TIMEOUT_S
        )
        assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        return done.stdout

    @property
    def rank_logs(self) -> Path:
        """Where each rank of every job leaves a log of its own."""
        return self.folder / "rank-logs"

    def submit(self, *arguments: str, **variables: str) -> str:
        """`sbatch` with one CPU per task and no GPU: the job's number."""
        here = ("--gpus-per-node=0", "--cpus-per-task=1", f"--output={self.folder}/%x-%j.out")
        logs = {"RANK_LOGS": str(self.rank_logs)}
        return self.call("sbatch", "--parsable", *here, *arguments, **logs, **variables).strip()

    def launch(self, *arguments: str, output: str = "%x-%j.out", **variables: str) -> list[str]:
        """`destruct launch slurm --submit` with one CPU per task, no GPU and one rank per node: the jobs' numbers."""
        here = ("--gpus-per-node=0", "--ranks-per-node=1", "--sbatch=--cpus-per-task=1", "--sbatch=--mem=0")
        command = (sys.executable, "-m", "destruct.launch", "slurm", "--submit", *here)
        logs = {"RANK_LOGS": str(self.rank_logs)}
        said = self.call(*command, f"--sbatch=--output={self.folder}/{output}", *arguments, **logs, **variables)
        numbers = re.match(r"submitted ([\d, ]+);", said)
        assert numbers is not None, said
        return numbers[1].split(", ")

    def fields(self, number: str) -> dict[str, str]:
        """What `scontrol show job` tells of a job, or of a task of an array."""
        shown = self.call("scontrol", "--oneliner", "show", "job", number)
        return dict(re.findall(r"(\S+?)=(.*?)(?=\s+[\w/:.-]+=|\s*$)", shown))

    def wait_for(self, condition: Callable[[], object], what: str, timeout_s: float = TIMEOUT_S) -> None:
        """Until it holds."""
        until = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < until, f"{what}: not within {timeout_s:.0f} s"
            time.sleep(0.2)

    def finish(self, number: str, timeout_s: float = TIMEOUT_S) -> Job:
        """Wait for the end of a job, however many lives it has."""
        self.wait_for(lambda: self.fields(number).get("JobState") in ENDED, f"job {number} ends", timeout_s)
        fields = self.fields(number)
        log = Path(fields["StdOut"])
        return Job(fields, log.read_text() if log.exists() else "")

    def run(self, *arguments: str, **variables: str) -> Job:
        """Submit and wait."""
        return self.finish(self.submit(*arguments, **variables))


def daemons(folder: Path) -> list[str]:
    """Command lines of Slurm's and munge's processes that belong to the cluster in `folder`."""
    lines = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    return [line for line in lines if str(folder) in line and any(name in line for name in DAEMONS)]


def free_ports(count: int) -> int:
    """The first of `count` neighbouring ports nobody listens on, below those that Linux gives out by itself."""
    while True:
        first = random.SystemRandom().randrange(20000, 32000)
        with suppress(OSError), ExitStack() as at_end:
            for port in range(first, first + count):
                at_end.enter_context(socket.socket()).bind(("", port))
            return first


@contextmanager
def two_nodes(folder: Path) -> Iterator[Cluster]:
    """Start the cluster below `folder`; when the block ends nothing of it is left."""
    home = folder / "cluster"
    variables = environment() | {"LOCAL_SLURM_DIR": str(home), "LOCAL_SLURM_PORT": str(free_ports(3))}
    variables = {name: value for name, value in variables.items() if not name.startswith(("SLURM_", "SBATCH_"))}
    cluster = Cluster(folder, variables | {"SLURM_CONF": str(home / "slurm.conf")})
    try:
        said = cluster.call(str(SCRIPT), "up", "--nodes", "2")
        assert said == f"export SLURM_CONF={home}/slurm.conf\n"
        assert len(daemons(home)) == 4, "munged, slurmctld, and a slurmd per node"
        yield cluster
    finally:
        cluster.call(str(SCRIPT), "down")
        assert not home.exists() and not daemons(home)


def main() -> int:
    """Say in two lines why no cluster can be started here; `make slurm-test` goes no further then."""
    if reason := why_not():
        print(f"slurm-test: {reason.replace(': ', chr(10) + '  remedy: ', 1)}", file=sys.stderr)
    return 3 if reason else 0


if __name__ == "__main__":
    sys.exit(main())
