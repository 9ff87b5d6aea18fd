"""Seconds per phase of an update."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Watch:
    """`with watch("generate"): ...` adds the block's wall-clock seconds to that phase."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    def start(self) -> None:
        """Forget the last update."""
        self._seconds = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[phase] = self._seconds.get(phase, 0.0) + time.perf_counter() - begun

    def read(self) -> dict[str, float]:
        """Seconds of each phase since `start`."""
        return dict(self._seconds)
