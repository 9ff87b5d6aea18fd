"""The same faults on a loop that has DeepSpeed alone, under DeepSpeed's own launcher: what becomes of it."""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import psutil

from tests.distributed.launching import ROOT
from tests.faults.disk import mounted
from tests.faults.lives import Life, strike
from tests.faults.trials import Outcome, Trials
from tests.processes import variables, words

STEPS, LONG = 5, 10_000
SHARD = "zero_pp_rank_0_mp_rank_00_optim_states.pt"


def loop(folder: Path, steps: int) -> Life:
    """Two ranks of it."""
    folder.mkdir(exist_ok=True)
    launcher = str(Path(sys.executable).with_name("deepspeed"))
    script = str(ROOT / "tests" / "faults" / "bare_deepspeed.py")
    return Life([launcher, "--num_gpus", "2", script, str(folder), str(steps)], folder)


def steps_in(folder: Path) -> int:
    path = folder / "steps.jsonl"
    return path.read_text(encoding="utf-8").count("\n") if path.exists() else 0


@cache
def saved(folder: Path) -> Path:
    """A finished one, with a checkpoint of each step."""
    if loop(folder, STEPS).end() != 0:
        raise RuntimeError(f"the bare loop failed in {folder}")
    return folder


def struck(folder: Path, target: str, number: signal.Signals) -> Outcome:
    """A signal after a few steps."""
    life = loop(folder, LONG)
    if not life.wait_for(lambda: steps_in(folder) >= 3):
        raise RuntimeError(f"the bare loop did not begin: {life.err}")
    strike(target_of(life, target), number)
    code = life.end()
    left = life.sweep()
    return {"said": f"exit code {code}; {left or 'no'} processes left"}


def target_of(life: Life, name: str) -> list[psutil.Process]:
    """A rank, the launcher of the ranks, or the command that a person typed."""
    ranks = [each for each in life.processes() if "RANK" in variables(each)]
    if name == "rank":
        return ranks[1:]
    if name == "launcher":
        return [each for each in life.processes() if each not in ranks and "launcher.launch" in words(each)]
    return [psutil.Process(life.process.pid)]


def flip(shard: Path) -> None:
    """The highest bit of an exponent in the master weights: their bytes are in a record of their own."""
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 0x40
    shard.write_bytes(data)


def delete(path: Path) -> None:
    path.unlink()


def of_another_step(shard: Path) -> None:
    shutil.copy(str(shard).replace(f"step{STEPS}", "step2"), shard)


def of_the_other_rank(shard: Path) -> None:
    shutil.copy(str(shard).replace("pp_rank_0", "pp_rank_1"), shard)


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a bit flipped": (SHARD, flip),
    "cut short": (SHARD, lambda path: os.truncate(path, path.stat().st_size // 2)),
    "deleted": (SHARD, delete),
    "the other rank's": (SHARD, of_the_other_rank),
    "another step's": (SHARD, of_another_step),
    "no latest": ("../latest", delete),
    "latest is empty": ("../latest", empty),
    "latest leads elsewhere": ("../latest", lambda path: path.write_text("../saves/step2")),
}
"""By the fault: the file below the last checkpoint, and what is done to it."""


def damaged(folder: Path, whole: Path, name: str) -> Outcome:
    """A life after a damage: whether it notices, and where it begins."""
    shutil.copytree(whole, folder)
    (folder / "steps.jsonl").unlink()
    file, act = DAMAGE[name]
    act((folder / "saves" / f"step{STEPS}" / file).resolve())
    life = loop(folder, STEPS + 1)
    code = life.end()
    life.sweep()
    if code == 0:
        return {"said": f"exit code 0; begins at step {STEPS + 2 - steps_in(folder)} without a word"}
    last = [line for line in life.err.splitlines() if "Error" in line][:1]
    return {"said": f"exit code {code}: {last[0].split('rror')[0].split()[-1] if last else ''}rror"}


def full(folder: Path) -> Outcome:
    """Room for some checkpoints."""
    with mounted(folder / "small", 1024):
        life = loop(folder / "small", LONG)
        code = life.end()
        left = life.sweep()
        parts = [len(list(path.iterdir())) for path in (folder / "small" / "saves").glob("step*")]
    half = sum(number < max(parts) for number in parts)
    return {"said": f"exit code {code}; {left or 'no'} processes left; {half or 'no'} half checkpoint left"}


def bare(trials: Trials) -> None:
    """Signals and SIGKILL, damaged files, a full disk."""
    place = trials.folder / "bare"
    place.mkdir(exist_ok=True)
    for target in ("rank", "launcher", "command"):
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1):
            name = f"{number.name}, {target}"
            folder = place / name.replace(", ", "-")
            trials.make("bare", name, lambda: struck(folder, target, number))  # noqa: B023
    for name in DAMAGE:
        folder = place / name.replace(" ", "-").replace("'", "")
        trials.make("bare", name, lambda: damaged(folder, saved(place / "whole"), name))  # noqa: B023
    trials.make("bare", "disk full", lambda: full(place))
