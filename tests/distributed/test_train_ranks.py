"""A fault on every rank, found once the ranks have met: the first rank tells it, another one if it is still there."""

import subprocess
import sys

import pytest

from destruct.launching.surroundings import free_port
from tests.distributed.launching import ROOT, environment
from tests.tiny import write_config

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


def test_without_a_launcher_that_ends_them_each_rank_tells_the_fault_by_its_number(tmp_path):
    (tmp_path / "long.yaml").write_text(f"prompts: [{{topic: a, text: '{'1+1=2 ' * 200}'}}]\n")
    place = {"WORLD_SIZE": "2", "LOCAL_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, "-m", "destruct.train", "--config", str(write_config(tmp_path))]
    command.append(f"prompts.file={tmp_path / 'long.yaml'}")
    ranks = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment() | place | {"RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    said = [rank.communicate(timeout=120)[1].splitlines() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [2, 2]
    assert all(len(lines) == 2 and "leave room to continue" in lines[0] for lines in said), said
    assert said[0][0].startswith("destruct: the prompt '1+1=2 ")
    assert said[1][0].startswith("destruct: rank 1: the prompt '1+1=2 ")
