"""A full disk on one of two ranks while a checkpoint of DeepSpeed or FSDP is written."""

import json

import pytest

from tests.forked import run_ranks

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def test_a_full_disk_on_one_rank_gives_up_that_save_on_all_and_the_next_one_works(tmp_path):
    """Both meet in collectives while they save: the rank whose write failed must not miss one, or the others wait."""
    done = run_ranks(2, "tests.distributed.save_worker", str(tmp_path))
    assert done.returncode == 0, done.stderr[-4000:]
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results) == 6
    for name, published in results.items():
        assert published == [2, 0, 2], name
        assert sorted(p.name for p in (tmp_path / name).iterdir()) == ["latest", "step-00000001", "step-00000003"]
