"""A rank that the others wait for is named, whatever holds it up, and every rank writes its stacks."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from destruct.heartbeat import Heartbeat
from destruct.watchdog import Seen, Watchdog, verdict

STALL_S = 2.0

RANKS = """
import ctypes, os, sys, time
from pathlib import Path

from destruct.heartbeat import HEART
from destruct.watchdog import Watchdog

rank, how, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])


def seen(words):
    while words not in (folder / f"rank-{rank}").read_text():
        time.sleep(0.01)


def where_it_hangs():
    if how == "interpreter":
        ctypes.PyDLL(None).sleep(1000)  # does not let go of the interpreter
    time.sleep(1000)


with Watchdog(HEART, folder, folder / f"rank-{rank}.log", rank, 3, float(sys.argv[4])).looking():
    while not all((folder / f"rank-{each}").exists() for each in range(3)):
        HEART.beat()
        time.sleep(0.01)
    HEART.count = 100
    with HEART.during("generate"):
        seen('"generate"')
        if rank == 1 and how != "collective":
            where_it_hangs()
        with HEART.waiting():
            seen('"waits": true')
            print("waits", flush=True)
            time.sleep(1000)
"""


@pytest.fixture
def end_of(tmp_path):
    """Three ranks as processes, of which rank 1 hangs in some way: exit codes, what they say, and their logs."""

    def start(how: str) -> tuple[list[int], list[str], list[str]]:
        (tmp_path / "ranks.py").write_text(RANKS)
        ranks = [
            subprocess.Popen(
                [sys.executable, "ranks.py", str(rank), how, str(tmp_path), str(STALL_S)],
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": os.getcwd()},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(3)
        ]
        try:
            assert ranks[0].stdout is not None
            ranks[0].stdout.readline()
            if how == "collective":
                assert ranks[1].stdout is not None
                ranks[1].stdout.readline()
                ranks[1].send_signal(signal.SIGSTOP)
            codes = [rank.wait(timeout=60) for rank in ranks if rank is not ranks[1]]
            if how == "sleep":  # it can speak for itself, and may have the first verdict
                ranks[1].wait(timeout=60)
            ranks[1].kill()
            said = [rank.communicate()[1] for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
        return codes, said, [(tmp_path / f"rank-{rank}.log").read_text() for rank in range(3)]

    return start


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("sleep", "is late in phase generate, 1 calls behind"),
        ("interpreter", "is stopped, or keeps its interpreter busy; last seen in phase generate"),
        ("collective", "is stopped, or keeps its interpreter busy; last seen in phase generate"),
    ],
)
def test_a_rank_that_hangs_is_named_by_one_rank_and_all_end_and_leave_their_stacks(end_of, how, words):
    """`collective`: stopped as a whole, while it waits as the others do."""
    codes, said, logs = end_of(how)
    assert codes == [76, 76]
    assert "".join(said).count("nothing has gone on") == 1
    assert f"destruct: nothing has gone on for {STALL_S:g} s: rank 1 {words}\n  remedy: see the stacks" in "".join(said)
    assert "ranks.py" in logs[0] and "ranks.py" in logs[2]
    if how != "collective":
        assert "in where_it_hangs" in logs[1]


WORKS = Seen(50, 100, "generate", False)
WAITS = Seen(50, 101, "generate", True)


@pytest.mark.parametrize(
    ("after", "late", "words"),
    [
        ([WAITS, WORKS, WAITS], [1], "is late in phase generate, 1 calls behind"),
        ([WORKS, WAITS, WAITS], [0], "is late in phase generate, 1 calls behind"),
        ([Seen(50, 101, "score", False), WAITS, WAITS], [0], "is late in phase score, not where the others wait"),
        ([WAITS, None, WAITS], [1], "shows nothing"),
        ([Seen(40, 101, "generate", True), WAITS, WAITS], [0], "is stopped, or keeps"),
        ([Seen(40, 101, "generate", True), WORKS, WAITS], [0], "is stopped, or keeps"),
        ([WORKS], [0], "is late in phase generate, not where the others wait"),
        ([WORKS, WORKS, WORKS], [], "nothing goes on in phase generate, and no rank is behind"),
        ([WAITS, WAITS], [], "nothing goes on in phase generate, and no rank is behind"),
        ([WORKS, WORKS, WAITS], [0, 1], "is late in phase generate, 1 calls behind"),
    ],
)
def test_the_late_rank_is_the_one_that_is_stopped_or_behind_or_does_not_wait(after, late, words):
    """Before, each rank's watchdog had looked 40 times."""
    before = [each and Seen(40, each.count, each.phase, each.waits) for each in after]
    got, said = verdict(before, after)
    assert got == late and said.startswith(words)


def test_a_ranks_file_says_where_it_is(tmp_path):
    heart = Heartbeat()
    with Watchdog(heart, tmp_path, tmp_path / "rank-0.log", 0, 1, stall_s=8.0).looking(), heart.during("update"):
        heart.beat()
        while not (tmp_path / "rank-0").exists():
            time.sleep(0.02)
        shown = json.loads(Path(tmp_path / "rank-0").read_text())
    assert (shown["count"], shown["phase"], shown["waits"]) == (1, "update", False)
    assert (tmp_path / "rank-0.log").read_text() == ""
