"""A real Slurm cluster of two nodes on this machine, and jobs on it."""

import os
import random
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.distributed.launching import ROOT, environment

SCRIPT = ROOT / "launch" / "local_slurm.sh"
NODES = "127.0.0.[1-2]"
DAEMONS = ("munged", "slurmctld", "slurmd", "slurmstepd")
TIMEOUT_S = 300


def why_not() -> str:
    """What keeps the cluster from starting here; empty where nothing does."""
    missing = [program for program in ("munged", "slurmctld", "slurmd", "sbatch") if not shutil.which(program)]
    if missing:
        return f"{', '.join(missing)} not installed: apt-get install slurm-wlm munge"
    if os.geteuid() != 0:
        return "slurmd needs root"
    return "" if (ROOT / ".venv").exists() else "launch/env.sh needs .venv: make setup"


@dataclass(frozen=True)
class Job:
    """A job that has ended: fields of `scontrol show job`, and what it wrote."""

    fields: dict[str, str]
    log: str


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

    def submit(self, *arguments: str, **variables: str) -> str:
        """`sbatch` with one CPU per task and no GPU: the job's number."""
        here = ("--gpus-per-node=0", "--cpus-per-task=1", f"--output={self.folder}/%x-%j.out")
        return self.call("sbatch", "--parsable", *here, *arguments, **variables).strip()

    def finish(self, number: str) -> Job:
        """Wait for the end of a job."""
        until = time.monotonic() + TIMEOUT_S
        fields: dict[str, str] = {}
        while fields.get("JobState") in (None, "PENDING", "RUNNING", "COMPLETING"):
            assert time.monotonic() < until, f"job {number} has not ended: {fields}"
            time.sleep(0.2)
            shown = self.call("scontrol", "--oneliner", "show", "job", number)
            fields = dict(re.findall(r"(\S+?)=(.*?)(?=\s+[\w/:.-]+=|\s*$)", shown))
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
