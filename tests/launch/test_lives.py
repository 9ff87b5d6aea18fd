"""`launch/bin/deepspeed` where ranks tell it more than an exit code: who is at fault, and that the run is to go on."""

import pytest

from tests.launch.test_launcher import launch, ranks_left

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def test_a_run_that_set_itself_back_is_started_again_and_its_second_life_decides(tmp_path):
    done = launch(tmp_path, "--num_gpus", "2", "-m", "toy", "again")
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines().count("deepspeed: the run starts again, from its last checkpoint") == 1
    assert done.stdout.count("rank 0 of 2 got again") == done.stdout.count("rank 1 of 2 got again") == 2


def test_a_rank_that_another_holds_at_fault_is_named_and_killed_though_it_is_stopped(tmp_path):
    done = launch(tmp_path, "--num_gpus", "2", "-m", "toy", "blame")
    assert done.returncode == 76
    assert done.stderr.splitlines()[0] == "deepspeed: rank 1 is late in phase score"
    assert not ranks_left(tmp_path)


def test_where_nobody_is_at_fault_it_is_said_what_is_wrong(tmp_path):
    done = launch(tmp_path, "--num_gpus", "2", "-m", "toy", "nobody")
    assert (done.returncode, done.stderr.splitlines()[0]) == (76, "deepspeed: nothing goes on")
