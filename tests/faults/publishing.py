"""Killed at every system call by which a checkpoint is saved and published; then each of these calls is refused."""

import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from destruct.checkpoint.state import TrainState, step_name
from destruct.checkpoint.store import CheckpointStore
from destruct.engine.topology import Topology
from destruct.errors import DestructError
from tests import forked
from tests.faults.trials import CannotRun, Outcome, Trials

CALLS = ("openat", "write", "fsync", "mkdir", "rename", "unlink", "unlinkat", "rmdir", "getdents64", "close")
"""What a save asks of the kernel; a call that is not on the list changes nothing on the disk."""

CHANGING = ("write", "fsync", "mkdir", "rename", "unlink", "unlinkat", "rmdir")
"""Those of them that leave something else on the disk."""

KILLED = "signal=KILL"
REFUSED = ("error=EIO", "error=ENOSPC", "error=EROFS")
"""As strace injects them: the process dies before the call, or the call is not made and fails so."""

THREADS = ("main", "publish", "hash")
FILES = ("policy/state.pt", "value/state.pt", "frozen/model.safetensors")
NEXT = 9
"""The checkpoint that is saved after the fault."""


def store_in(folder: Path) -> CheckpointStore:
    return CheckpointStore(folder / "checkpoints", Topology(0, 1, torch.device("cpu")), keep=2)


def state_after(update: int) -> TrainState:
    return TrainState(kl_coef=0.1, update=update, best_update=update, best_loss=1 / update)


def save(store: CheckpointStore, update: int) -> Path | None:
    """A checkpoint whose files tell of its update."""

    def write(stage: Path) -> None:
        for name in FILES:
            (stage / name).parent.mkdir(exist_ok=True)
            (stage / name).write_text(f"{name} after {update}")
        state_after(update).save(stage / "state.json")

    store.save(step_name(update), [write], {"update": update}, best=True)
    return store.settle()


@dataclass(frozen=True, slots=True)
class Scene:
    """What a process does when the fault comes; before it there are the checkpoints 1 and 2."""

    act: Callable[[CheckpointStore], object]
    may_stand: frozenset[int]  # checkpoints that may be the newest after a crash


SCENES = {
    "save": Scene(lambda store: save(store, 3), frozenset({2, 3})),  # which retires the first
    "again": Scene(lambda store: save(store, 2), frozenset({1, 2})),
    "set back": Scene(lambda store: store.stand_at(store.path(1), state_after(1)), frozenset({1, 2})),
}


def worker(folder: Path, scene: str, goes_on: bool, parent: Connection) -> None:
    """The process that is struck: says which its threads are, and waits for leave.

    Args:
        goes_on: it saves once more.
    """
    store = store_in(folder)
    save(store, 1)
    save(store, 2)
    threads = {thread.name: thread.native_id for thread in threading.enumerate()}
    parent.send({"main": threads["MainThread"], "publish": threads["publish_0"]})
    parent.recv()
    try:
        SCENES[scene].act(store)
    except DestructError as error:
        print(error)
    if goes_on:
        found = store.latest()
        print(json.dumps(found and found.facts["update"]), flush=True)
        save(store, NEXT)
    os._exit(0)


def strike(folder: Path, scene: str, thread: str, inject: str | None, goes_on: bool) -> tuple[forked.Done, str]:
    """One such process under strace; returns its end and strace's log, a call of the thread a line.

    Args:
        inject: call, fault and number, as strace has them; None for no fault.
    """
    ours, theirs = Pipe()
    process = forked.start(folder, worker, folder, scene, goes_on, theirs)
    if not ours.poll(forked.PATIENCE_S):
        raise RuntimeError(f"the process did not begin: {(folder / 'err').read_text()}")
    threads = ours.recv()
    traced = threads["publish" if thread == "publish" else "main"]
    log = folder / "strace.log"
    which = ["--follow-forks"] if thread == "hash" else []
    command = ["strace", *which, f"--attach={traced}", f"--output={log}", f"--trace={','.join(CALLS)}"]
    command += [] if inject is None else [f"--inject={inject}"]
    tracer = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    awaited = [f"{process.pid}/task/{each}" for each in (threads.values() if which else [traced])]
    while not _is_traced(awaited, tracer.pid):
        if tracer.poll() is not None:
            process.kill()
            raise CannotRun("strace may not attach to a process here")
        time.sleep(0.001)
    ours.send(None)
    done = forked.end(folder, process)
    tracer.wait(forked.PATIENCE_S)
    return done, log.read_text()


def _is_traced(threads: list[str], tracer: int) -> bool:
    """Whether the tracer has begun: all wait, it for them, and they for leave."""
    states = [_status(str(tracer)), *map(_status, threads), _status(str(tracer))]
    return all(state["State"] == "S" for state in states) and all(int(state["TracerPid"]) for state in states[1:-1])


def _status(process: str) -> dict[str, str]:
    """First word of each line of a process's or thread's status."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return {name: value.split()[0] for name, _, value in (line.partition(":") for line in lines) if value.split()}


def calls_of(folder: Path, scene: str, thread: str) -> Counter[str]:
    """How often a scene makes each call in a thread; of those that hash files, in that which makes the most."""
    done, log = strike(folder, scene, thread, None, goes_on=False)
    if done.code != 0:
        raise RuntimeError(f"without a fault: {done}")
    if thread != "hash":
        return Counter(re.findall(r"^(\w+)\(", log, re.MULTILINE))
    # They come and go with each save, and call fsync as the publisher does, before it.
    by_thread = Counter(re.findall(r"^(\d+) +fsync\(", log, re.MULTILINE))
    return Counter({"fsync": min(by_thread.values())}) if by_thread else Counter()


def wrong_after(folder: Path, may_stand: frozenset[int]) -> str | None:
    """What a run that goes on from there finds amiss; None where all is well."""
    store = store_in(folder)
    try:
        found = store.latest()
    except DestructError as error:
        return f"damaged: {error}"
    if found is None:
        return "no checkpoint is left"
    update = found.facts["update"]
    if update not in may_stand:
        return f"{update} is the newest, not one of {sorted(may_stand)}"
    if any((found.folder / name).read_text() != f"{name} after {update}" for name in FILES):
        return f"{found.folder.name} holds another one's files"
    store.stand_at(found.folder, TrainState.load(found.folder / "state.json"))
    if save(store, NEXT + 1) != store.path(NEXT + 1):
        return "the next save fails"
    there = {path.name for path in store.folder.iterdir()}
    expected = {found.folder.name, step_name(NEXT + 1), "latest", "best"}
    return None if there - {"given-up"} == expected else f"after the next save there is {sorted(there)}"


def wrong_where_it_lives(done: forked.Done, scene: Scene) -> str | None:
    """What is amiss with a process whose call was refused, and which is to go on or to end in words."""
    if done.code != 0:
        return f"it ended with {done.code}: {done.err.splitlines()[-1:]}"
    found = json.loads(done.out.splitlines()[-1])
    return None if found in scene.may_stand else f"{found} was the newest after it"


def every_call(folder: Path, scene: str, thread: str, how: str, named: Sequence[str] = CALLS) -> Outcome:
    """A fault of one kind at each call of a thread that is named."""
    if shutil.which("strace") is None:
        raise CannotRun("no strace on this machine")
    wrong, crashes = [], 0
    goes_on = how != KILLED
    calls = {call: times for call, times in calls_of(_empty(folder), scene, thread).items() if call in named}
    for call, times in sorted(calls.items()):
        for number in range(1, times + 1):
            done, _ = strike(_empty(folder), scene, thread, f"{call}:{how}:when={number}", goes_on)
            crashes += done.code == -9
            if goes_on:
                amiss = wrong_where_it_lives(done, SCENES[scene]) or wrong_after(folder, frozenset({NEXT}))
            else:
                amiss = wrong_after(folder, SCENES[scene].may_stand)
            if amiss is not None:
                wrong.append(f"{scene}, {thread}, {call} {number}, {how}: {amiss}")
    return {"calls": sum(calls.values()), "crashes": crashes, "unrecoverable": len(wrong), "wrong": wrong}


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def publishing(trials: Trials) -> None:
    """Every scene, thread and fault."""
    place = trials.folder / "publishing"
    for how in (KILLED, *REFUSED):
        for scene in SCENES:
            # Of a call that is refused by its number, each of the threads that hash would have its own.
            for thread in THREADS if how == KILLED else THREADS[:2]:
                trials.make(
                    "publishing",
                    f"{scene}, {thread}, {how}",
                    lambda: every_call(place, scene, thread, how),  # noqa: B023
                )
