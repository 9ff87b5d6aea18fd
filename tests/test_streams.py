"""Where the words of a process go while its outputs are kept apart."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from destruct import streams
from tests.tiny import ROOT

PROGRAM = """
import faulthandler, logging, os, sys
from pathlib import Path
from destruct import streams
log = Path(sys.argv[1])

def speak(word):
    print(word, "printed")
    print(word, "complained", file=sys.stderr)
    os.write(1, f"{word} raw\\n".encode())
    os.system(f"echo {word} child")

"""


def said(tmp_path: Path, program: str, **how) -> tuple[subprocess.CompletedProcess[str], str]:
    """The process that ran it, and its log."""
    outputs = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | how
    environment = os.environ | {"PYTHONPATH": str(ROOT), "A_SECRET": "a canary of mine"}
    log = tmp_path / "rank.log"
    command = [sys.executable, "-c", PROGRAM + program, str(log)]
    done = subprocess.run(command, env=environment, text=True, timeout=60, **outputs)
    return done, log.read_text() if log.exists() else ""


def test_what_is_printed_waits_for_the_log_and_is_in_it_in_its_order(tmp_path):
    done, log = said(
        tmp_path,
        """
speak("before")
with streams.apart():
    speak("early")
    print("to the person", file=streams.out(), flush=True)
    print("a fault", file=streams.err(), flush=True)
    streams.flow_into(log)
    speak("late")
    print(os.environ["A_SECRET"])
speak("after")
""",
    )
    words = ("printed", "complained", "raw", "child")
    assert log.splitlines() == [f"{when} {word}" for when in ("early", "late") for word in words] + ["<secret>"]
    assert sorted(done.stdout.splitlines()) == sorted(
        ["to the person"] + [f"{when} {word}" for when in ("before", "after") for word in words if word != "complained"]
    )
    assert done.stderr.splitlines() == ["before complained", "a fault", "after complained"]


@pytest.mark.parametrize("known", [False, True])
def test_a_fault_brings_along_what_no_log_has(tmp_path, known):
    flow = "streams.flow_into(log)" if known else "pass"
    program = f"with streams.apart():\n    speak('early')\n    {flow}\n    raise KeyError('fault')\n"
    done, log = said(tmp_path, program)
    assert done.returncode == 1 and done.stderr.endswith("KeyError: 'fault'\n") and not done.stdout
    assert ("early raw" in log, "early raw" in done.stderr) == (known, not known)


def test_what_is_forgotten_is_not_shown(tmp_path):
    program = "with streams.apart():\n    speak('early')\n    streams.forget()\n    raise KeyError('fault')\n"
    done, _ = said(tmp_path, program)
    assert "early" not in done.stderr + done.stdout and done.stderr.endswith("KeyError: 'fault'\n")


def test_a_full_disk_is_no_fault_of_whoever_prints(tmp_path):
    program = "with streams.apart():\n    full = os.open('/dev/full', os.O_WRONLY)\n"
    program += "    os.dup2(full, 1)\n    os.dup2(full, 2)\n    print('x' * 100_000)\n"
    program += "    sys.stderr.write('y\\n')\n    print('goes on', file=streams.out(), flush=True)\n"
    done, _ = said(tmp_path, program)
    assert (done.returncode, done.stdout, done.stderr) == (0, "goes on\n", "")


def test_with_an_output_closed_nothing_is_kept_apart(tmp_path):
    """Another file may have its number by now."""
    program = "with streams.apart():\n    streams.flow_into(log)\n    os.write(2, b'said\\n')\n"
    done, log = said(tmp_path, program, stdout=None, preexec_fn=lambda: os.close(1))
    assert (done.returncode, done.stderr, log) == (0, "said\n", "")


def test_the_stack_of_a_crash_goes_to_the_person(tmp_path):
    program = "faulthandler.enable()\nwith streams.apart():\n    streams.flow_into(log)\n"
    program += "    import ctypes\n    ctypes.string_at(0)\n"
    done, log = said(tmp_path, program)
    assert done.returncode < 0 and "Segmentation fault" in done.stderr and not log


def test_under_a_test_nothing_changes(capsys):
    with streams.apart():
        print("printed")
        print("said", file=streams.out())
    assert capsys.readouterr().out == "printed\nsaid\n"
