"""Where this process is: the phase, how many calls it has made, and how long it has worked by itself."""

import time
from collections.abc import Iterator
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


@dataclass(slots=True)
class Heartbeat:
    """Signs of life of one rank, written by what runs and read by its watchdog.

    All ranks make the same calls of models and of collectives: the one that has made fewer is late.
    """

    count: int = 0  # calls of models and collectives so far
    at: float = field(default_factory=time.monotonic)  # of the last sign of life
    phase: str = "start"
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
        """Within the block this rank is in that phase."""
        before, self.phase = self.phase, phase
        self.alive()
        try:
            yield
        finally:
            self.phase = before
            self.alive()

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
