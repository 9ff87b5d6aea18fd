"""A terminal for tests: a real pseudo-terminal to run a command in, and what stands on its screen afterwards."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from dataclasses import dataclass, field
from pathlib import Path

CODE = re.compile(r"\x1b\[([0-9;]*)([A-Za-z])")


@dataclass
class Screen:
    """What a terminal of that many columns shows of a text; it knows the codes that are used here, and no others."""

    columns: int
    lines: list[str] = field(default_factory=lambda: [""])
    row: int = 0
    column: int = 0
    widest: int = 0

    def feed(self, text: str) -> "Screen":
        """Write to it; ValueError for a code that is unknown."""
        while text:
            if text[0] == "\x1b":
                code = CODE.match(text)
                if code is None:
                    raise ValueError(f"no code that this terminal knows: {text[:12]!r}")
                self._obey(code[2], int(code[1] or 1) if code[1].isdecimal() or not code[1] else 1)
                text = text[code.end() :]
            else:
                self._put(text[0])
                text = text[1:]
        return self

    def _obey(self, code: str, number: int) -> None:
        if code == "A":
            self.row = max(0, self.row - number)
        elif code == "K":
            self.lines[self.row] = ""
        elif code != "m":
            raise ValueError(f"no code that this terminal knows: {number}{code}")

    def _put(self, letter: str) -> None:
        if letter == "\r":
            self.column = 0
        elif letter == "\n":
            self.row += 1
            self.lines += [""] * (self.row + 1 - len(self.lines))
        else:
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + letter + line[self.column + 1 :]
            self.column += 1
            self.widest = max(self.widest, self.column)

    def text(self) -> str:
        """What stands there."""
        return "\n".join(line.rstrip() for line in self.lines).strip("\n")


@dataclass
class Seen:
    """What a command wrote to its terminal."""

    code: int
    raw: str
    screen: Screen

    @property
    def plain(self) -> str:
        """All of it without colours and movements."""
        return CODE.sub("", self.raw)


def in_terminal(command: list[str], columns: int, rows: int = 24, cwd: Path | None = None, **variables: str) -> Seen:
    """Run a command whose outputs are one terminal of that size.

    Args:
        variables: of its environment, besides those of this process.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        cwd=cwd,
        env=kept | {"TERM": "xterm-256color"} | variables,
        start_new_session=True,
    )
    os.close(theirs)
    said = b""
    while chunk := _read(ours):
        said += chunk
    os.close(ours)
    raw = said.decode()
    return Seen(process.wait(60), raw, Screen(columns).feed(raw))


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # the last one that had it open has ended
        return b""
