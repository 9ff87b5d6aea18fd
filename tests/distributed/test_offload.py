"""ZeRO-3 with tensors in files against the same in the host's memory, bit for bit, at one and two ranks."""

import json
from pathlib import Path

import pytest

from tests.forked import run_ranks

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

KINDS = pytest.mark.parametrize("kind", ["bfloat16 both", "float32 both", "bfloat16 weights", "bfloat16 states"])


@pytest.fixture(scope="module", params=[1, 2])
def figures(request, tmp_path_factory) -> dict:
    folder: Path = tmp_path_factory.mktemp("offload")
    for name in ("files", "others"):
        (folder / name).mkdir()
    done = run_ranks(request.param, "tests.distributed.offload_worker", str(folder))
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "results.json").read_text())


@KINDS
def test_three_updates_leave_the_bits_that_they_leave_in_memory(figures, kind):
    """Weights, master weights and both moments of both networks, in several sub-groups; the resumed one likewise."""
    case = figures[kind]
    assert case["groups"] > 2
    assert case["unlike"] == case["resumed_unlike"] == 0, "on all ranks"


@KINDS
def test_what_is_said_to_rest_in_files_lies_in_a_mapped_one_before_and_after_a_resume(figures, kind):
    """Weights, master weights, gradients and moments of all ranks, by the kernel's list of each process's mappings."""
    assert figures[kind]["in_memory"] == 0


@KINDS
def test_the_files_have_no_names_and_nothing_keeps_a_loaded_checkpoint(figures, kind):
    """So that nothing stays behind, however a rank ends, and a deleted checkpoint gives its room back."""
    assert figures[kind]["names"] == figures[kind]["mapped_checkpoints"] == 0


def test_a_checkpoint_without_moments_leaves_none_in_memory(figures):
    """Of a run in memory that had not stepped yet."""
    assert figures["unstepped"] == {"unlike": 0, "in_memory": 0}


def test_a_run_hands_the_folders_of_its_json_files_to_every_engine(figures):
    assert figures["built"] == {"policy": 0, "value": 0, "frozen": 0}


def test_a_frozen_model_in_files_sees_every_refresh(figures):
    assert figures["frozen"] == {"gaps": [0.0, 0.0], "in_memory": 0}
