"""Runs of a tiny config as jobs: what is submitted, what their ranks write down, and what is left at the end."""

import json
import os
import signal
from pathlib import Path

import psutil

from tests.faults.lives import VALUE, steps_in
from tests.processes import at
from tests.slurm.cluster import LIVES, Cluster
from tests.tiny import write_config

SINGLE, MULTI, SWEEP = (f"launch/slurm_{name}.sbatch" for name in ("single_node", "multi_node", "sweep"))

WITNESS = """
import json, os, pathlib, signal, time

folder, rank = pathlib.Path(os.environ["WITNESS_FOLDER"]), os.environ["RANK"]
names = ("MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "LOCAL_WORLD_SIZE")
seen = {name: os.environ[name] for name in (*names, "OMP_NUM_THREADS")}
node = os.environ.get("SLURMD_NODENAME")
(folder / f"rank-{rank}.json").write_text(json.dumps({"pid": os.getpid(), "node": node, "seen": seen}))
calls = 0

def one(prompts, responses, continuations):
    global calls
    calls += 1
    if calls == 2 and rank == os.environ.get("WITNESS_DIES"):
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(float(os.environ.get("WITNESS_SLEEPS_S", "0")) / 4)  # an update's rollouts come in four parts
    return [1.0] * len(responses)
"""
"""A reward that writes down which rank asks for it, and where; at its second call it can kill its rank, and in each
update it can sleep."""

FULL_LIVES, SLEEP_S = 5, 15
"""As Slurm looks every 30 s, a job with a limit of a minute is warned between its 29th and its 59th second: by then it
has made three updates of this length, and ends the fourth.  A requeued one begins some ten seconds after such a look,
so that it has made two."""

UPDATES = 6 if LIVES < FULL_LIVES else 4 + 3 * (FULL_LIVES - 2) + 1
"""More than four such lives can make."""

OVERRIDES = (
    'reward.terms={"witness:one": 1.0}',
    "warmup.lm_updates=1",
    "run.num_epochs=1",
    f"run.updates_per_epoch={UPDATES}",
    "run.checkpoint_every=1",
)
"""Blanks and quotes included, which have to reach every rank as they are."""


def arguments(folder: Path) -> tuple[str, ...]:
    """What follows the script's name: a config whose run goes below `folder`, and overrides."""
    (folder / "witness.py").write_text(WITNESS)
    return str(write_config(folder)), *OVERRIDES


def surroundings(folder: Path, **variables: str) -> dict[str, str]:
    return {"PYTHONPATH": str(folder), "WITNESS_FOLDER": str(folder)} | variables


def begin(
    cluster: Cluster, folder: Path, *options: str, updates: int = 2, sleep_s: float = 1.0, **variables: str
) -> str:
    """Submit a run of a rank on each node, and wait until it has made so many updates; returns the job's number."""
    variables = surroundings(folder, WITNESS_SLEEPS_S=str(sleep_s), **variables)
    number = cluster.submit("--ntasks-per-node=1", *options, MULTI, *arguments(folder), **variables)
    wait_for_updates(cluster, folder, updates)
    return number


def wait_for_updates(cluster: Cluster, folder: Path, updates: int) -> None:
    cluster.wait_for(lambda: steps_in(folder / "tiny") >= 1 + VALUE + updates, f"{updates} updates")


def witnesses(folder: Path) -> list[dict]:
    """What each rank wrote down in its latest life, in the order of ranks."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("rank-*.json"))]


def ranks(folder: Path) -> list[psutil.Process]:
    """Those that run."""
    found = (at(witness["pid"]) for witness in witnesses(folder))
    return [process for process in found if process is not None]


def kill(process: psutil.Process) -> None:
    os.kill(process.pid, signal.SIGKILL)
