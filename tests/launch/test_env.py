"""`launch/env.sh`, under the shells that people have."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


SHELLS = [
    pytest.param(name, marks=pytest.mark.skipif(not shutil.which(name), reason=f"no {name}"))
    for name in ("bash", "zsh")
]


def sourced(shell: str, checkout: Path, script: str) -> subprocess.CompletedProcess[str]:
    """A script in another folder than the checkout, under a shell that reads no start-up files."""
    quiet = ["--norc", "-u"] if shell == "bash" else ["-fu"]
    environment = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "OMP_NUM_THREADS")}
    script = script.replace("ENV", f"source '{checkout}/launch/env.sh'")
    return subprocess.run(
        [shell, *quiet, "-c", script], cwd="/", env=environment, capture_output=True, text=True, timeout=60
    )


@pytest.fixture
def checkout(tmp_path):
    """A checkout whose folder has a blank and a bracket in its name, with a virtual environment."""
    checkout = tmp_path / "my [check] out"
    shutil.copytree(ROOT / "launch", checkout / "launch")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", checkout / ".venv"], check=True, timeout=60)
    return checkout


@pytest.mark.parametrize("shell", SHELLS)
def test_sourcing_twice_leaves_one_entry_each_and_launch_bin_first(checkout, shell):
    once, twice, later = sourced(
        shell, checkout, 'ENV; echo "$PATH"; ENV; echo "$PATH"; PATH="/mine:$PATH"; ENV; echo "$PATH"'
    ).stdout.splitlines()
    ours = [str(checkout / "launch/bin"), str(checkout / ".venv/bin")]
    assert once == twice
    assert once.split(":")[:2] == ours
    assert later.split(":")[:3] == [*ours, "/mine"]
    assert [later.split(":").count(entry) for entry in ours] == [1, 1]


@pytest.mark.parametrize("shell", SHELLS)
def test_sourcing_sets_threads_only_where_they_are_not_set(checkout, shell):
    assert sourced(shell, checkout, "ENV; echo $OMP_NUM_THREADS").stdout == "1\n"
    assert sourced(shell, checkout, "export OMP_NUM_THREADS=7; ENV; echo $OMP_NUM_THREADS").stdout == "7\n"


@pytest.mark.parametrize("shell", SHELLS)
def test_sourcing_without_a_venv_says_make_setup_and_returns_3(checkout, shell):
    shutil.rmtree(checkout / ".venv")
    done = sourced(shell, checkout, 'before="$PATH"; ENV || echo $?; [ "$before" = "$PATH" ] && echo unchanged')
    assert done.stdout.split() == ["3", "unchanged"]
    assert "make setup" in done.stderr and len(done.stderr.splitlines()) == 1
