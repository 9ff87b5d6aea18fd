"""The last moment of a rank."""

import pytest

from tests.distributed.launching import ROOT, run, torchrun

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def test_a_rank_that_is_done_ends_with_0_although_gloos_threads_still_want_the_interpreter(tmp_path):
    """With `sys.exit` in the place of `leave` rank 1 aborts: "terminate called without an active exception"."""
    done = run(torchrun(2, str(ROOT / "tests" / "distributed" / "leaving_worker.py"), str(tmp_path)))
    assert done.returncode == 0, done.stderr[-4000:]
    assert (tmp_path / "sum").read_text() == "16.0"
