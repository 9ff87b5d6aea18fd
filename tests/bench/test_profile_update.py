"""The profile of a tiny run: every phase in the table, its shares a whole, and a trace that a browser can open."""

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import write_config

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_an_update_is_told_by_phase_and_network_with_its_trace(tmp_path):
    trace, config = tmp_path / "trace" / "one.json.gz", str(write_config(tmp_path))
    command = [sys.executable, "-m", "bench.profile_update", "--config", config, "--trace", str(trace)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    command.append("engine.backend=single")
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = {}
    for line in done.stdout.splitlines():
        cells = [cell.strip() for cell in re.split("[│┃|]", line)[1:-1]]
        if len(cells) == 6 and cells[0] not in ("", "phase"):
            rows.setdefault(cells[0], cells[1:])
    phases = {"round", "data", "generate", "score", "update", "kl"}
    assert phases | {"policy forward", "value backward", "policy step", "frozen refreshed", "all"} <= set(rows)
    phases |= {"evaluate", "compare", "checkpoint"} & set(rows)
    assert sum(float(rows[phase][1].rstrip("%")) for phase in phases) == pytest.approx(100, abs=0.5)
    seconds = {name: float(cells[0]) for name, cells in rows.items()}
    assert sum(seconds[phase] for phase in phases) == pytest.approx(seconds["all"], abs=0.01)
    parts = [f"{network} {call}" for network in ("policy", "value") for call in ("backward", "step")]
    assert sum(seconds[part] for part in parts) < seconds["update"] + 0.01
    assert all(float(rows[phase][4].replace(",", "")) > 100 for phase in phases)  # MiB of a process with torch
    assert all(float(cells[2]) == 0 for cells in rows.values() if cells[2])  # one process waits for none
    with gzip.open(trace, "rt", encoding="utf-8") as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert {"generate", "update", "policy backward", "aten::mm"} <= names
