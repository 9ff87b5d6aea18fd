"""Makes the missing runs of the curriculum benchmark, some at a time, each in a process of its own."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from bench.curriculum_judge import average
from bench.curriculum_results import ROOT, append, key, read
from bench.curriculum_settings import Settings
from destruct.errors import DestructError
from destruct.exits import Exit

Told = dict[str, Any]


def finished(wanted: list[Settings], file: Path, jobs: int) -> list[dict[str, Any]]:
    """The results of these runs, in their order: those of the file, and the missing ones, which are made and added.

    Args:
        jobs: processes at a time, of one thread each.

    Raises:
        DestructError: a run failed, or the code changed while it went on; what was finished by then is in the file.
    """
    kept = read(file)
    keys = [key(settings) for settings in wanted]
    missing = {name: settings for name, settings in zip(keys, wanted, strict=True) if name not in kept}
    board = Board(len(set(keys)) - len(missing), missing)
    with board, closing(make(missing, jobs, board.show)) as made:
        for name, result in made:
            if key(missing[name]) != name:
                raise DestructError(
                    f"the code under test changed while {board.title(missing[name])} ran: its result is dropped",
                    "start the benchmark again, and leave the code alone until it ends",
                )
            kept[name] = append(file, name, result)
            board.end(name, result)
    return [kept[name] for name in keys]


def make(
    pending: dict[str, Settings], jobs: int, show: Callable[[str, Told], None]
) -> Generator[tuple[str, dict[str, Any]], None, None]:
    """Each run as it finishes: its name in `pending` and its result.  Whatever ends this ends the processes.

    Args:
        show: gets a run's name and what it says on the way.
    """
    told: queue.Queue[tuple[str, Told | None]] = queue.Queue()
    waiting, running = list(pending), {}
    results: dict[str, dict[str, Any]] = {}
    try:
        while waiting or running:
            for name in [waiting.pop(0) for _ in range(min(jobs - len(running), len(waiting)))]:
                start(name, pending[name], told, running)
            name, event = told.get()
            if event is None:
                running.pop(name).check(name in results)
                yield name, results.pop(name)
            elif "result" in event:
                results[name] = event["result"]
            else:
                show(name, event)
    finally:
        with uninterrupted():
            for worker in running.values():
                worker.stop()
            for worker in running.values():
                worker.wait()


def start(
    name: str, settings: Settings, told: "queue.Queue[tuple[str, Told | None]]", running: "dict[str, Worker]"
) -> None:
    """A process for this run, added to `running`; one that an interrupt keeps from there would never be ended."""
    with uninterrupted():
        running[name] = Worker(name, settings, told)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C and SIGTERM take effect at the end of the block; in the main thread alone."""
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came[:1]:
            signal.raise_signal(number)


class Worker:
    """One run in a process of its own, which puts into `told` what it says, and None when it has ended."""

    def __init__(self, name: str, settings: Settings, told: "queue.Queue[tuple[str, Told | None]]"):
        self.name, self._told = name, told
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.curriculum_run", json.dumps(asdict(settings))],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C reaches this process alone, which ends the others
        )
        self._errors: deque[str] = deque(maxlen=1)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        threading.Thread(target=self._read, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stderr is not None
        self._errors.extend(line for line in self._process.stderr if line.strip())

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.endswith("\n"):  # the last line of a process that was ended may be a part of one
                self._told.put((self.name, json.loads(line)))
        self._listener.join()
        self._told.put((self.name, None))

    def check(self, has_result: bool) -> None:
        """Raise DestructError unless the process ended well."""
        code = self._process.wait()
        if code or not has_result:
            raise DestructError(
                f"a run ended with code {code}: {self._errors[-1] if self._errors else 'it said nothing'}",
                "free memory if the code is -9; the finished runs are kept, and the same command goes on",
                Exit.ENVIRONMENT,
            )

    def stop(self) -> None:
        """Ask the process to end."""
        self._process.terminate()

    def wait(self) -> None:
        """Until it has ended."""
        self._process.wait()


@dataclass
class Line:
    """A running run on the screen."""

    title: str
    budget: int
    began: float  # seconds of the monotonic clock
    excess: float | None = None
    task: TaskID | None = None


class Board:
    """One line for each running run: tokens, average excess, time left; piped, a line at each evaluation.

    Args:
        kept: runs that were there already.
        missing: those to come, by name.
    """

    def __init__(self, kept: int, missing: dict[str, Settings]):
        self.missing, self.done, self.kept = missing, 0, kept
        self.console = Console(stderr=True, highlight=False, markup=False)
        self.live = self.console.is_terminal
        columns = (TextColumn("{task.description}", markup=False), BarColumn(16), TextColumn("{task.fields[status]}"))
        self.progress = Progress(*columns, TimeRemainingColumn(), console=self.console, disable=not self.live)
        self.lines: dict[str, Line] = {}

    def __enter__(self) -> "Board":
        self.say(f"{self.kept} runs are there already, {len(self.missing)} to come")
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(text, soft_wrap=not self.live)

    @staticmethod
    def title(settings: Settings) -> str:
        """What a run is called on the screen."""
        return f"{settings.mixture} {settings.label} seed {settings.seed}"

    def show(self, name: str, told: Told) -> None:
        """What a run says on the way: `budget_used` and, after an evaluation, `excess`."""
        settings, now = self.missing[name], time.monotonic()
        if name not in self.lines:
            task = self.progress.add_task(self.title(settings), total=settings.budget, status="")
            self.lines[name] = Line(self.title(settings), settings.budget, now, task=task)
        line, used = self.lines[name], told["budget_used"]
        if "excess" in told:
            line.excess = average(dict(zip(settings.sources, told["excess"], strict=True)))
        status = f"{used / 1e6:.2f} M tokens, excess {'-' if line.excess is None else f'{line.excess:.4f}'}"
        self.progress.update(line.task, completed=used, status=status)
        if "excess" in told and not self.live:
            left = (now - line.began) * max(0.0, line.budget / used - 1)
            self.say(f"{line.title}: {status}, {left / 60:.1f} min left")

    def end(self, name: str, result: dict[str, Any]) -> None:
        """The run is finished and kept."""
        self.done += 1
        line = self.lines.pop(name, None)
        if line is not None:
            self.progress.remove_task(line.task)
        spent = f"{result['seconds'] / 60:.1f} min"
        self.say(f"{self.title(self.missing[name])}: finished in {spent}, {self.done} of {len(self.missing)}")
