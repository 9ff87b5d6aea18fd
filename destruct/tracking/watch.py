"""Seconds per phase of an update."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from destruct.heartbeat import HEART


class Watch:
    """`with watch("generate"): ...` adds the block's wall-clock seconds to that phase."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            with HEART.during(phase):
                yield
        finally:
            self._seconds[phase] = self._seconds.get(phase, 0.0) + time.perf_counter() - begun

    def take(self) -> dict[str, float]:
        """Seconds of each phase since the last call."""
        taken, self._seconds = self._seconds, {}
        return taken
