"""Ranks that the doctor starts are gone when it is, however it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from destruct.checkup import ranks
from destruct.launching.processes import code_of, ranks_below
from tests.distributed.launching import ROOT
from tests.processes import below

HANGS = 'setsid sh -c \'echo $$ > "$0/pid"; exec sleep 300\' "$0" & {}; wait'
"""A launcher of one rank, in a session of its own as torchrun's are, that does not end."""
BEGINS = 'until [ -s "$0/pid" ]; do sleep 0.01; done; touch "$0/begun"'


@pytest.mark.parametrize("begins", [True, False])
def test_a_rank_that_hangs_is_ended_in_its_time(tmp_path, monkeypatch, begins):
    longer, shorter = ("IMPORTS_S", "PATIENCE_S") if begins else ("PATIENCE_S", "IMPORTS_S")
    monkeypatch.setattr(ranks, longer, 60.0)
    monkeypatch.setattr(ranks, shorter, 3.0)
    begun = time.monotonic()
    assert ranks.run(["sh", "-c", HANGS.format(BEGINS if begins else ":"), str(tmp_path)], tmp_path) is None
    rank = int((tmp_path / "pid").read_text())
    while code_of(rank) is None and time.monotonic() - begun < 20:
        time.sleep(0.01)
    assert code_of(rank) is not None


def test_what_ends_by_itself_is_read_to_its_end(tmp_path):
    assert ranks.run(["sh", "-c", "echo 'destruct: no' >&2; exit 3"], tmp_path) == 3
    assert (tmp_path / "stderr").read_text() == "destruct: no\n"


@pytest.mark.slow
@pytest.mark.distributed
def test_a_doctor_that_is_sent_away_takes_its_rank_and_files_along(tmp_path):
    """SIGTERM twice, as timeout(1) sends it."""
    variables = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "destruct.doctor", "--ranks", "1"]
    doctor = subprocess.Popen(command, cwd=tmp_path, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        until = time.monotonic() + 120
        while len(started := ranks_below(doctor.pid)) < 1 and doctor.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        family = below(doctor.pid)
        for _ in range(2):
            doctor.send_signal(signal.SIGTERM)
        _, said = doctor.communicate(timeout=30)
    finally:
        doctor.kill()
    assert (len(started), doctor.returncode, said) == (1, 128 + signal.SIGTERM, b"")
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive and not [path for path in Path(tmp_path).iterdir() if "destruct" in path.name]
