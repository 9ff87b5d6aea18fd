"""What a rank writes to its two outputs: words of ours go to the person, whatever else is printed to the rank's log.

C++, compilers and Python's `print` all write to the file descriptors 1 and 2, and so these are led elsewhere: into a
file that nobody sees until the rank has a log, and then into that.  The person's own are kept, and written to by name.
"""

import faulthandler
import io
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from destruct import last_words
from destruct.secrets import Masking, masked

OURS, LINE = "destruct", "%(asctime)s %(levelname)s %(name)s: %(message)s"
"""The logger of what is said to the person, and how a line of a log looks."""

NUMBERS = (1, 2)
"""The file descriptors of both outputs."""


class _Willing(io.FileIO):
    """A descriptor of which nobody hears that its disk is full: that is no fault of whoever prints."""

    def write(self, content: Any, /) -> int:
        try:
            return super().write(content)
        except OSError:
            return len(content)


class _Printed(io.TextIOWrapper):
    """Takes what Python prints, without the environment's secrets."""

    def write(self, text: str, /) -> int:
        super().write(masked(text))
        return len(text)


@dataclass(slots=True)
class _Apart:
    """The person's outputs, and where that which is printed is kept while the rank has no log."""

    out: TextIO
    err: TextIO
    printed: BinaryIO | None


_apart: _Apart | None = None


def out() -> TextIO:
    """The person's standard output."""
    return sys.stdout if _apart is None else _apart.out


def err() -> TextIO:
    """The person's standard error."""
    return sys.stderr if _apart is None else _apart.err


@contextmanager
def apart() -> Iterator[None]:
    """Within the block all that is printed is kept from the person, who sees what is written to `out()` and `err()`.

    An exception that leaves it brings along what was printed where no log has taken that.  Where this process has no
    outputs of its own, as under a test or with one of them closed, nothing changes.
    """
    global _apart
    if not all(map(_is_ours, (sys.stdout, sys.stderr), NUMBERS)):
        yield
        return
    before = sys.stdout, sys.stderr
    for stream in before:
        stream.flush()
    _apart = _Apart(_copy(sys.stdout), _copy(sys.stderr), _place())
    _lead_to(_apart.printed)
    sys.stdout, sys.stderr = map(_printed, NUMBERS)
    if faulthandler.is_enabled():
        faulthandler.enable(_apart.err)
    early = _logged_early()
    try:
        yield
    except Exception:
        _show(_apart)
        raise
    finally:
        logging.getLogger(OURS).removeHandler(early)
        _together(_apart, before)
        _apart = None


def _logged_early() -> logging.Handler:
    """Takes our own lines, until there is a log."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(Masking(LINE))
    logging.getLogger(OURS).setLevel(logging.INFO)
    logging.getLogger(OURS).addHandler(handler)
    return handler


def _together(apart: _Apart, before: tuple[TextIO, TextIO]) -> None:
    for stream in (sys.stdout, sys.stderr, apart.out, apart.err):
        with suppress(OSError):
            stream.flush()
    for number, stream in zip(NUMBERS, (apart.out, apart.err), strict=True):
        os.dup2(stream.fileno(), number)
    sys.stdout, sys.stderr = before
    if faulthandler.is_enabled():
        faulthandler.enable(sys.stderr)
    for stream in (apart.out, apart.err):
        with suppress(OSError):
            stream.close()


def flow_into(log: Path) -> None:
    """Let a rank's log have what was printed so far, and what comes."""
    if _apart is None:
        return
    with log.open("ab", buffering=0) as file:
        _flush()
        if _apart.printed is not None:
            file.write(_content(_apart.printed))
        _lead_to(file)
    forget()


def forget() -> None:
    """What was printed so far tells nothing that the person has not been told."""
    if _apart is not None and _apart.printed is not None:
        _apart.printed.close()
        _apart.printed = None


def _is_ours(stream: TextIO | None, number: int) -> bool:
    try:
        return stream is not None and stream.fileno() == number
    except (OSError, ValueError):
        return False


def _printed(number: int) -> _Printed:
    binary = io.BufferedWriter(_Willing(number, "wb", closefd=False))
    return _Printed(binary, encoding="utf-8", errors="replace", line_buffering=True)


def _copy(stream: TextIO) -> TextIO:
    return open(os.dup(stream.fileno()), "w", encoding=stream.encoding, errors="replace")


def _place() -> BinaryIO:
    """A file without a name, or one that the launcher finds, and reads where this process dies before it has a log."""
    path = last_words.place_of_output()
    with suppress(OSError):
        if path is not None:
            return path.open("w+b", buffering=0)
    if hasattr(os, "memfd_create"):  # Linux, where no disk is asked for room
        return open(os.memfd_create("printed"), "w+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)


def _lead_to(file: BinaryIO | None) -> None:
    if file is not None:
        for number in NUMBERS:
            os.dup2(file.fileno(), number)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


def _show(apart: _Apart) -> None:
    _flush()
    if apart.printed is not None:
        with suppress(OSError):
            apart.err.write(_content(apart.printed).decode("utf-8", "replace"))
            apart.err.flush()


def _content(file: BinaryIO) -> bytes:
    """All of it, wherever the next is written."""
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0)
