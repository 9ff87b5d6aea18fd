"""A user's functions that are slow or fail: reward terms, and formats of a source's rows."""

import time
from collections.abc import Callable
from typing import Any

Term = Callable[[list[str], list[str], list[str]], list[float]]
calls: list[str] = []


def _seldom() -> bool:
    """Whether it is the third call or a later one: the first is a trial, before there is a model."""
    calls.append("one more")
    return len(calls) > 2


def slow(prompts: list[str], responses: list[str], continuations: list[str]) -> list[float]:
    """Ten seconds, once."""
    if _seldom() and len(calls) == 3:
        time.sleep(10)
    return [float(len(response)) for response in responses]


def raising(prompts: list[str], responses: list[str], continuations: list[str]) -> list[float]:
    if _seldom():
        raise ConnectionError("the judge does not answer")
    return [0.0] * len(responses)


def too_few(prompts: list[str], responses: list[str], continuations: list[str]) -> list[float]:
    return [0.0] * (len(responses) - _seldom())


def no_number(prompts: list[str], responses: list[str], continuations: list[str]) -> list[Any]:
    return ["good" if _seldom() else 0.0] * len(responses)


def slow_row(row: dict[str, Any]) -> str:
    """Ten seconds, once."""
    calls.append("one more")
    if len(calls) == 3:
        time.sleep(10)
    return row["text"]


def raising_row(row: dict[str, Any]) -> str:
    if _seldom():
        raise KeyError("translation")
    return row["text"]
