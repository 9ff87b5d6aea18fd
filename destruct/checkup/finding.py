"""One thing that the doctor looked at, and what to do about it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from destruct.errors import DestructError


class State(StrEnum):
    """How it is: `warn` slows a run down or may end it later, `fail` ends it."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    state: State
    what: str  # with figures
    remedy: str | None = None  # where it is not ok


Check = Callable[[], Iterable[Finding]]


def ok(name: str, what: str) -> Finding:
    """Nothing to do."""
    return Finding(name, State.OK, what)


def warn(name: str, what: str, remedy: str) -> Finding:
    """It slows a run down, or may end it later."""
    return Finding(name, State.WARN, what, remedy)


def fail(name: str, what: str, remedy: str) -> Finding:
    """A run does not start, or ends."""
    return Finding(name, State.FAIL, what, remedy)


def of_error(name: str, error: DestructError) -> Finding:
    """What a run would have ended with."""
    return fail(name, error.problem, error.remedy)
