"""Slurm, where there is one: whether its controller answers, and its nodes take jobs."""

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator

from destruct.checkup.finding import Finding, fail, ok, warn

PATIENCE_S = 20


def slurm() -> Iterator[Finding]:
    """The cluster that this machine submits to; nothing is wrong where there is none."""
    missing = [name for name in ("sbatch", "srun", "scontrol", "sinfo") if shutil.which(name) is None]
    if len(missing) == 4:
        yield ok("slurm", "none on this machine")
        return
    worse = fail if "SLURM_JOB_ID" in os.environ else warn  # a run outside of jobs does not ask it
    if missing:
        yield worse("slurm", f"{' and '.join(missing)} not installed", "install Slurm's client programs")
        return
    ping, complaint = _said("scontrol", "ping")
    if " UP" not in ping:
        said = (ping or complaint).strip().partition("\n")[0]
        yield worse("slurm", f"the controller does not answer: {said}", "look at slurmctld, munged and SLURM_CONF")
        return
    yield _nodes(_said("sinfo", "--noheader", "--Node", "--format=%N %T")[0], worse)
    lines = [line.partition("=") for line in _said("scontrol", "show", "config")[0].splitlines()]
    settings = {key.strip(): value.strip() for key, _, value in lines}
    if settings.get("JobRequeue") == "0":
        words = "jobs are not requeued by themselves here (JobRequeue=0)"
        yield ok("slurm: requeue", f"{words}: the scripts in launch/ ask for it with --requeue")


def _nodes(listed: str, worse: Callable[[str, str, str], Finding]) -> Finding:
    """What the nodes do, from lines of name and state: one for each partition that a node is in."""
    states = Counter(line.split()[1] for line in dict.fromkeys(map(str.strip, listed.splitlines())) if " " in line)
    words = ", ".join(f"{number} {state}" for state, number in states.most_common())
    if not states:
        return warn("slurm", "sinfo shows no node", "sinfo --all shows hidden partitions too")
    if all(state.rstrip("*").startswith(("down", "drain", "fail", "unk")) for state in states):
        return worse("slurm", f"no node takes jobs: {words}", "sinfo --list-reasons says why")
    if any(state.endswith("*") or state.startswith(("down", "fail")) for state in states):
        return warn("slurm", f"some nodes take no jobs: {words}", "sinfo --list-reasons says why")
    return ok("slurm", f"nodes: {words}")


def _said(*command: str) -> tuple[str, str]:
    """What a command says, and what it complains of."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        return "", f"no answer in {PATIENCE_S} s"
    return done.stdout, done.stderr
