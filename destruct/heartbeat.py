"""Where this process is: the phase, how many calls it has made, and how long it has worked by itself."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Work:
    """What a rank has done by itself, so that ranks can be compared by it."""

    seconds: float = 0.0
    steps: int = 0  # of sampling: forwards
    tokens: int = 0  # sampled

    def __sub__(self, before: "Work") -> "Work":
        return Work(self.seconds - before.seconds, self.steps - before.steps, self.tokens - before.tokens)


START = "start"
"""The phase before there is any."""


@dataclass(slots=True)
class Heartbeat:
    """Signs of life of one rank, written by what runs and read by its watchdog.

    All ranks make the same calls of models and of collectives: the one that has made fewer is late.
    """

    count: int = 0  # calls of models and collectives so far
    at: float = field(default_factory=time.monotonic)  # of the last sign of life
    phase: str = START
    since: float = field(default_factory=time.monotonic)  # when that began
    done: int = 0  # parts of the phase
    total: int = 0  # of so many; 0 where nobody counts them
    listener: Callable[[], None] | None = None  # is told of each part
    waits: bool = False  # in a collective of ours
    alone_work: Work = Work()  # in which no rank waits for another

    def beat(self) -> None:
        """A call that all ranks make."""
        self.count += 1
        self.at = time.monotonic()

    def alive(self) -> None:
        """A sign of life within a call; other ranks may give more or fewer."""
        self.at = time.monotonic()

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Within the block this rank is in that phase, of which `expect` and `advance` may tell how far it is."""
        before = self.phase, self.since, self.done, self.total
        self.phase, self.since, self.done, self.total = phase, time.monotonic(), 0, 0
        self.alive()
        try:
            yield
        finally:
            self.phase, self.since, self.done, self.total = before
            self.alive()

    def expect(self, parts: int) -> None:
        """So many parts more are to come in this phase."""
        self.total += parts

    def advance(self, parts: int = 1) -> None:
        """So many of them are done."""
        self.done = min(self.total, self.done + parts)
        self.alive()
        if self.listener is not None:
            self.listener()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within the block this rank may wait for others."""
        self.beat()
        self.waits = True
        try:
            yield
        finally:
            self.waits = False
            self.alive()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Within the block, in one of `waiting`, others may wait for this rank."""
        before, self.waits = self.waits, False
        self.alive()
        try:
            yield
        finally:
            self.waits = before
            self.alive()

    def worked_alone(self, since: float, steps: int, tokens: int) -> None:
        """This rank has done its share of what all do at the same time, without a collective.

        Args:
            since: time.monotonic() when it began.
        """
        before = self.alone_work
        seconds = before.seconds + time.monotonic() - since
        self.alone_work = Work(seconds, before.steps + steps, before.tokens + tokens)


HEART = Heartbeat()
"""That of this process."""
