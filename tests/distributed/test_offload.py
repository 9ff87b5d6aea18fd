"""ZeRO-3 with tensors in files against the same in the host's memory, bit for bit, at one and two ranks."""

import json
from pathlib import Path

import pytest

from tests.distributed.launching import ROOT, run, torchrun

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

KINDS = pytest.mark.parametrize("kind", ["bfloat16 both", "float32 both", "bfloat16 weights", "bfloat16 states"])


@pytest.fixture(scope="module", params=[1, 2])
def figures(request, tmp_path_factory) -> dict:
    folder: Path = tmp_path_factory.mktemp("offload")
    for name in ("files", "others"):
        (folder / name).mkdir()
    done = run(torchrun(request.param, str(ROOT / "tests" / "distributed" / "offload_worker.py"), str(folder)))
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "results.json").read_text())


@KINDS
def test_three_updates_leave_the_bits_that_they_leave_in_memory(figures, kind):
    """Weights, master weights and both moments of both networks, in several sub-groups; the resumed one likewise."""
    case = figures[kind]
    assert case["groups"] > 2
    assert case["equal"] and figures["unlike"] == 0
    assert case["resumed"]


@KINDS
def test_what_is_said_to_rest_in_files_lies_in_a_mapped_one_after_a_resume(figures, kind):
    """By the kernel's list of this process's mappings."""
    assert set(figures[kind]["in_memory"].values()) == {0}, figures[kind]["in_memory"]
    assert set(figures[kind]["in_memory"]) == {"weights", "masters", "gradients", "exp_avg", "exp_avg_sq"}


@KINDS
def test_the_files_have_no_names(figures, kind):
    """So that nothing stays behind, however a rank ends."""
    assert figures[kind]["names"] == []


def test_a_frozen_model_in_files_sees_every_refresh(figures):
    assert figures["frozen"] == {"gaps": [0.0, 0.0], "in_memory": 0}
