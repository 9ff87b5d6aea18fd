"""Functions that a config names as `module:function`."""

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from destruct.errors import DestructError


def import_function(role: str, path: str) -> Callable[..., Any]:
    """The function of `module:function`.

    Args:
        role: what the config calls it, e.g. "reward term", for errors.

    Raises:
        DestructError: the module cannot be imported, or has no such function.
    """
    module_name, _, function_name = path.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except Exception as error:  # the module is the user's: anything may go wrong in it
        raise DestructError(
            f"{role} {path!r}: {type(error).__name__}: {error}",
            "put the module on PYTHONPATH and check the function's name",
        ) from None
    if not callable(function):
        raise DestructError(f"{role} {path!r} is {function!r}, not a function", "name a function of that module")
    return function


def place_of(role: str, path: str) -> str:
    """The file and line of the function of `module:function`, or what else is known of it."""
    function = import_function(role, path)
    try:
        return f"{inspect.getsourcefile(function)}:{inspect.getsourcelines(function)[1]}"
    except (OSError, TypeError):
        return f"{function!r} of the module {function.__module__}"
