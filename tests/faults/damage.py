"""What can befall the files of a checkpoint; each time the file is named, and the checkpoint before it taken."""

import os
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import torch

from destruct.checkpoint import finding
from destruct.checkpoint.store import CheckpointStore
from destruct.engine.topology import Topology
from destruct.errors import DestructError
from tests.faults import digests
from tests.faults.lives import Life, command
from tests.faults.trials import Outcome, Trials

BACKENDS = ("zero3", "fsdp")
HOW = ("run.num_epochs=1", "run.updates_per_epoch=2", "run.checkpoint_every=1")
FLIPS = 16
"""Bits of each file, one after the other."""

Fault = Callable[[Path, random.Random], Iterator[None]]
"""Damages a file in one way after another; it is made whole in between."""


class Code:
    """Makes a folder where it is unpickled."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self) -> tuple[Callable, tuple]:
        return os.mkdir, (str(self.canary),)


@cache
def checkpoints_of(backend: str, folder: Path) -> Path:
    """Of a run of two ranks and two updates."""
    folder.mkdir()
    life = Life(command(folder, *HOW, backend=backend), folder)
    if life.end() != 0:
        raise RuntimeError(f"the run that is to be damaged failed: {life.err}")
    return folder / "tiny" / "checkpoints"


def flipped(path: Path, chance: random.Random) -> Iterator[None]:
    """One bit, at both ends and in between."""
    whole = path.read_bytes()
    for place in [0, len(whole) - 1, *(chance.randrange(len(whole)) for _ in range(FLIPS - 2))]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        yield


def cut(path: Path, _: random.Random) -> Iterator[None]:
    """By a byte, by half, and to nothing."""
    size = path.stat().st_size
    for left in (size - 1, size // 2, 0):
        os.truncate(path, left)
        yield


def deleted(path: Path, _: random.Random) -> Iterator[None]:
    path.unlink()
    yield


def linked(path: Path, _: random.Random) -> Iterator[None]:
    """The same bytes, elsewhere, behind a link."""
    elsewhere = canary_of(path).with_name("elsewhere")
    os.replace(path, elsewhere)
    path.symlink_to(elsewhere)
    yield


def of_the_other_rank(path: Path, _: random.Random) -> Iterator[None]:
    yield from _swapped(path, {"rank_0": "rank_1", "rank_1": "rank_0", "__0_": "__1_", "__1_": "__0_"})


def of_the_other_network(path: Path, _: random.Random) -> Iterator[None]:
    yield from _swapped(path, {"/policy/": "/value/", "/value/": "/policy/"})


def of_another_step(path: Path, _: random.Random) -> Iterator[None]:
    newer, older = newest_two(canary_of(path).with_name("checkpoints"))
    yield from _swapped(path, {newer.name: older.name})


def _swapped(path: Path, others: dict[str, str]) -> Iterator[None]:
    """It holds what lies where its path has one word in place of another; nothing where that is the same."""
    for word, other in others.items():
        source = Path(str(path).replace(word, other))
        if source != path and source.exists() and source.read_bytes() != path.read_bytes():
            path.write_bytes(source.read_bytes())
            yield


def code(path: Path, _: random.Random) -> Iterator[None]:
    """A pickle that does what it likes."""
    path.write_bytes(pickle.dumps(Code(canary_of(path))))
    yield


def added(path: Path, _: random.Random) -> Iterator[None]:
    """One more beside it, whose name DeepSpeed would take."""
    more = _beside(path)
    more.write_bytes(pickle.dumps(Code(canary_of(path))))
    yield
    more.unlink()


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.stem}_9{path.suffix}")


FAULTS: dict[str, Fault] = {
    "a bit flipped": flipped,
    "cut short": cut,
    "deleted": deleted,
    "a link to the same bytes": linked,
    "the other rank's": of_the_other_rank,
    "the other network's": of_the_other_network,
    "another step's": of_another_step,
    "code in a pickle": code,
    "a file too many": added,
}


def newest_two(checkpoints: Path) -> list[Path]:
    """The newest checkpoint, which is damaged, and the one before it."""
    return finding.checkpoints(checkpoints)[:2]


def canary_of(path: Path) -> Path:
    """The folder that is made where the code in a pickle of this checkpoint runs."""
    return next(parent for parent in path.parents if parent.name == "checkpoints").with_name("canary")


def amiss(checkpoints: Path, names: set[str], wanted: Path) -> str | None:
    """None where a run would go on from `wanted`, names one of these files, and has run nothing."""
    try:
        found = CheckpointStore(checkpoints, Topology(0, 1, torch.device("cpu")), keep=9).latest()
    except DestructError as error:
        return f"all are refused: {error}"
    if canary_of(wanted).exists():
        return "the code in the pickle ran"
    if found is None or found.folder != wanted:
        return f"{found and found.folder.name} was taken"
    named = any(line.startswith(f"{checkpoints}/{name} ") for name in names for line in found.passed_over)
    return None if named else f"not named: {found.passed_over}"


def at_every_file(checkpoints: Path, fault: str) -> Outcome:
    """One fault, at each file of the newest checkpoint."""
    chance, wrong, number = random.Random(f"damage, {fault}"), [], 0
    newer, older = newest_two(checkpoints)
    for path in sorted(each for each in newer.rglob("*") if each.is_file()):
        whole, mode = path.read_bytes(), path.stat().st_mode
        named = _beside(path) if fault == "a file too many" else path
        # The manifest is not believed without its digest, nor this without that.
        names = {"manifest.json", "manifest.sha256"} if path.name.startswith("manifest.") else set()
        names = {f"{newer.name}/{name}" for name in names} | {named.relative_to(checkpoints).as_posix()}
        for _ in FAULTS[fault](path, chance):
            number += 1
            if words := amiss(checkpoints, names, older):
                wrong.append(f"{fault}: {path.relative_to(checkpoints)}: {words}")
            path.unlink(missing_ok=True)
            path.write_bytes(whole)
            path.chmod(mode)
    return {"corruptions": number, "undetected": len(wrong), "wrong": wrong}


def pointers(checkpoints: Path) -> Outcome:
    """`latest` names an older one, one that is elsewhere, none, no text; it is gone, or a folder."""
    pointer, wrong = checkpoints / "latest", []
    newer, older = newest_two(checkpoints)
    contents = [f"{older.name}\n", f"../checkpoints/{newer.name}\n", "/etc\n", "", "step-00000009\n", "\x00"]
    whole = pointer.read_bytes()
    for content in contents:
        pointer.write_text(content)
        wrong.append(amiss(checkpoints, {"latest"}, newer))
    for replace in (pointer.unlink, pointer.mkdir):
        replace()
        wrong.append(amiss(checkpoints, {"latest"}, newer))
    pointer.rmdir()
    pointer.write_bytes(whole)
    broken = [f"latest: {words}" for words in wrong if words is not None]
    return {"corruptions": len(wrong), "undetected": len(broken), "wrong": broken}


def life_after(backend: str, folder: Path, fault: str) -> Outcome:
    """A real run of two ranks over a damaged checkpoint: it repeats the last update, and ends as before."""
    before = checkpoints_of(backend, folder / backend)
    place = folder / f"{backend}-{fault.replace(' ', '-')}"
    shutil.copytree(before.parent, place / "tiny")
    checkpoints = place / "tiny" / "checkpoints"
    newer, older = newest_two(checkpoints)
    victim = sorted((newer / "policy").iterdir())[0]
    next(FAULTS[fault](victim, random.Random(0)))
    life = Life(command(place, *HOW, "run.resume=auto", backend=backend), place)
    code, said, wrong = life.end(), " ".join(life.out.split()), []
    if (code, life.resumed_from()) != (0, older.name) or str(victim) not in said or canary_of(victim).exists():
        wrong.append(f"{fault}: exit code {code}, {said[:400]} {life.err[-400:]}")
    elif digests.of_checkpoint(newer) != digests.of_checkpoint(before / newer.name):
        wrong.append(f"{fault}: it ended with another state")
    return {"corruptions": 1, "undetected": len(wrong), "wrong": wrong}


def damage(trials: Trials) -> None:
    """Every fault at every file, of ZeRO-3 and of FSDP."""
    for backend in BACKENDS:
        place = trials.folder / backend
        for fault in FAULTS:
            trials.make(
                "damage",
                f"{backend}, {fault}",
                lambda: at_every_file(checkpoints_of(backend, place), fault),  # noqa: B023
            )
        trials.make("damage", f"{backend}, the pointer", lambda: pointers(checkpoints_of(backend, place)))  # noqa: B023
        for fault in ("a bit flipped", "code in a pickle"):
            trials.make(
                "damage",
                f"{backend}, a life after {fault}",
                lambda: life_after(backend, trials.folder, fault),  # noqa: B023
            )
