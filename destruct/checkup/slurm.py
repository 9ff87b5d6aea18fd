"""Slurm, where there is one: whether its controller answers, and its nodes take jobs."""

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator

from destruct.checkup.finding import Finding, fail, ok, warn

PATIENCE_S = 20


def slurm() -> Iterator[Finding]:
    """The cluster that this machine submits to; nothing is wrong where there is none."""
    missing = [name for name in ("sbatch", "srun", "scontrol", "sinfo") if shutil.which(name) is None]
    if len(missing) == 4:
        yield ok("slurm", "none on this machine")
        return
    if missing:
        yield fail("slurm", f"{' and '.join(missing)} not installed", "install Slurm's client programs")
        return
    ping = _said("scontrol", "ping")
    if ping is None or " UP" not in ping:
        said = (ping or f"no answer in {PATIENCE_S} s").strip().partition("\n")[0]
        here = any(name in os.environ for name in ("SLURM_JOB_ID", "SLURM_CONF"))  # else nobody may want it
        words = f"the controller does not answer: {said}"
        yield (fail if here else warn)("slurm", words, "look at slurmctld, munged and SLURM_CONF")
        return
    states = Counter((_said("sinfo", "--noheader", "--Node", "--format=%T") or "").split())
    words = ", ".join(f"{number} {state}" for state, number in states.most_common()) or "no node"
    if all(state.rstrip("*").startswith(("down", "drain", "fail", "unk")) for state in states):
        yield fail("slurm", f"no node takes jobs: {words}", "sinfo --list-reasons says why")
    elif any(state.endswith("*") or state.startswith(("down", "fail")) for state in states):
        yield warn("slurm", f"some nodes take no jobs: {words}", "sinfo --list-reasons says why")
    else:
        yield ok("slurm", f"nodes: {words}")
    lines = [line.partition("=") for line in (_said("scontrol", "show", "config") or "").splitlines()]
    settings = {key.strip(): value.strip() for key, _, value in lines}
    if settings.get("JobRequeue") == "0":
        words = "jobs are not requeued by themselves here (JobRequeue=0)"
        yield ok("slurm: requeue", f"{words}: the scripts in launch/ ask for it with --requeue")


def _said(*command: str) -> str | None:
    """What a command says, on both outputs; None where it does not end."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        return None
    return done.stdout + done.stderr
