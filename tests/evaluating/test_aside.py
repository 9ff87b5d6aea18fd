"""What a command says while its result goes to standard output: a bar on a terminal, wherever the result goes."""

import os
import pty
import subprocess
import sys

from tests.tiny import ROOT

STEPS = """
from destruct.evaluating.aside import Aside
for first in (True, False):
    with Aside(first).steps("loss" if first else "silent", 3) as advance:
        for word in ("a", "b", "c"):
            advance(word)
print("the result")
"""


def test_a_terminal_has_the_bar_though_the_result_is_piped():
    ours, theirs = pty.openpty()
    done = subprocess.run([sys.executable, "-c", STEPS], cwd=ROOT, stdout=subprocess.PIPE, stderr=theirs, text=True)
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    assert done.stdout == "the result\n"
    assert "loss" in shown and "3/3" in shown and "silent" not in shown


def test_piped_the_last_step_is_a_line_of_the_first_rank():
    done = subprocess.run([sys.executable, "-c", STEPS], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("the result\n", "loss       3/3  c\n")
