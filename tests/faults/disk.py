"""Real file systems that are full, of many sizes, or that can only be read: a run goes on, or ends in words."""

import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from destruct.checkpoint import finding
from destruct.checkpoint.store import CheckpointStore
from destruct.engine.topology import Topology
from destruct.errors import DestructError
from tests import forked
from tests.faults.lives import Life, command
from tests.faults.trials import CannotRun, Outcome, Trials
from tests.tiny import write_config

SIZES = 50
SMALLEST_KIB, LARGEST_KIB = 64, 8192
"""Of the file system: from one that takes not even the run's first files to one on which several checkpoints fit."""

HOW = ["run.num_epochs=2", "run.checkpoint_every=1", "run.keep_checkpoints=9", "run.resume=auto"]


@contextmanager
def mounted(place: Path, kib: int) -> Iterator[Callable[[str], None]]:
    """A file system of its own in memory; gives what mounts it anew with other options."""
    place.mkdir(parents=True)

    def mount(options: str) -> None:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True, text=True)
        if done.returncode != 0:
            raise CannotRun(f"no file system can be mounted here: {done.stderr.strip()}")

    mount(f"size={kib}k,mode=700")
    try:
        yield lambda options: mount(f"remount,{options}")
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)
        place.rmdir()


def alone(folder: Path, runs: Path, *overrides: str) -> forked.Done:
    """A run of one rank, to its end; what it says lies in a folder of its own."""
    config, said = write_config(folder), folder / f"said-{len(list(folder.glob('said-*')))}"
    said.mkdir()
    arguments = ["--config", str(config), "engine.backend=single", f"run.folder={runs}", *HOW, *overrides]
    return forked.end(said, forked.start(said, forked.train, arguments))


def amiss(code: int | None, err: str, run: Path) -> str | None:
    """None where a run ended in words, what it left is whole, and nothing is left of what it could not write."""
    if code not in (0, 3) or (code == 3) != ("remedy:" in err):
        return f"exit code {code}: {err[-500:]}"
    checkpoints = run / "checkpoints"
    if left := sorted(path.name for path in checkpoints.glob(".*")):
        return f"it left {left}"
    try:
        found = CheckpointStore(checkpoints, Topology(0, 1, torch.device("cpu")), keep=9).latest()
    except DestructError as error:
        return f"damaged: {error}"
    if found is not None and found.passed_over:
        return f"passed over: {found.passed_over}"
    return None


def full(folder: Path, kib: int) -> Outcome:
    """The run's folder on a disk of that size; then there is room, and it goes on to its end."""
    folder.mkdir()
    runs = folder / "runs"
    wrong = []
    with mounted(runs, kib) as mount:
        done = alone(folder, runs)
        wrong.append(amiss(done.code, done.err, runs / "tiny"))
        wrong += ["a traceback"] * ("Traceback" in done.err)
        published = len(finding.checkpoints(runs / "tiny" / "checkpoints"))
        mount("size=64m")
        again = alone(folder, runs)
        if again.code != 0:
            wrong.append(f"with room again: exit code {again.code}: {again.err[-500:]}")
        if published and "resumed after update" not in again.out + done.out * (done.code == 0):
            wrong.append("with room again it began anew")
    return _outcome(folder, f"{kib} KiB", wrong) | {"exit": done.code, "published": published}


def full_with_two_ranks(folder: Path) -> Outcome:
    """The same by ZeRO-3: room for some checkpoints of the warm-up."""
    folder.mkdir()
    runs = folder / "runs"
    with mounted(runs, 3072):
        life = Life([*command(folder, *HOW), f"run.folder={runs}"], folder)
        code = life.end()
        wrong = [amiss(code, life.err, runs / "tiny")]
        orphans = life.sweep()
    return _outcome(folder, "two ranks", wrong) | {"exit": code, "orphans": orphans}


def cannot_be_written(folder: Path, what: str) -> Outcome:
    """The folder of all runs, or that of the checkpoints, can only be read."""
    folder.mkdir()
    runs = folder / "runs"
    place = runs if what == "runs" else runs / "tiny" / "checkpoints"
    wrong = []
    if what == "checkpoints":
        wrong.append(amiss(*_ended(alone(folder, runs, "run.num_epochs=1")), runs / "tiny"))
        shutil.move(place, folder / "before")
    with mounted(place, 8192) as mount:
        if what == "checkpoints":
            shutil.copytree(folder / "before", place, dirs_exist_ok=True)
        mount("ro")
        done = alone(folder, runs)
        wrong.append(amiss(*_ended(done), runs / "tiny"))
        if done.code != 3:
            wrong.append(f"exit code {done.code}")
    return _outcome(folder, f"{what} read-only", wrong) | {"exit": done.code}


def _ended(done: forked.Done) -> tuple[int | None, str]:
    return done.code, done.err


def _outcome(folder: Path, name: str, found: list[str | None]) -> Outcome:
    wrong = [f"{name}: {words}" for words in found if words is not None]
    if not wrong:
        shutil.rmtree(folder)
    return {"unrecoverable": len(wrong), "wrong": wrong}


def sizes() -> list[int]:
    """KiB, each a little apart from the one before it, so that what does not fit is always something else."""
    chance = random.Random("disk")
    step = (LARGEST_KIB / SMALLEST_KIB) ** (1 / (SIZES - 1))
    return [round(SMALLEST_KIB * step**number * chance.uniform(1, 1.05) / 4) * 4 for number in range(SIZES)]


def disk(trials: Trials) -> None:
    """Every size, two ranks, and folders that can only be read."""
    place = trials.folder / "disk"
    place.mkdir(exist_ok=True)
    for kib in sizes():
        trials.make("disk", f"full at {kib} KiB", lambda: full(place / str(kib), kib))  # noqa: B023
    trials.make("disk", "full, two ranks", lambda: full_with_two_ranks(place / "two-ranks"))
    for what in ("runs", "checkpoints"):
        trials.make("disk", f"{what} read-only", lambda: cannot_be_written(place / what, what))  # noqa: B023
