"""The benchmark beside TRL: its floor by hand, and our side of it at a tiny size; the peer is not installed here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.ppo_case import Work
from bench.ppo_iteration import floor_flops

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"vocab": 256, "hidden": 64, "layers": 2, "prompt": 6, "response": 4, "batch": 4, "micro": 2, "epochs": 1}


def test_the_floor_worked_by_hand():
    """One rollout of one prompt and one response token, one layer 64 wide, V = 100, an epoch.

    A token's products: 2 * 4 * 64^2 = 32,768 of projections, 2 * 12 * 64^2 = 98,304 of the feed-forward part and
    4 * 64 * 1 of attention to one column in the mean.  Both networks of scoring that sample or judge texts read both
    tokens, 2 * 131,328; of the nine other passes (three of scoring, forward and twice backward of two networks) each
    leaves one feed-forward part out.  The head, 2 * 64 * 100, is multiplied in sampling, twice in scoring, and thrice
    in the epoch.
    """
    work = Work("float32", 100, 64, 1, prompt=1, response=1, batch=1, micro=1, epochs=1)
    assert floor_flops(work, 1) == 2 * (2 * 131_328) + 9 * (2 * 131_328 - 98_304) + 6 * 12_800


@pytest.mark.slow
def test_our_side_tells_its_seconds_and_memory_with_and_without_masters():
    sizes = [text for name, value in SIZES.items() for text in (f"--{name}", str(value))]
    once = ["--turns", "1", "--iterations", "1", "--sides", "ours", "pure"]
    command = [sys.executable, "-m", "bench.ppo_iteration", *sizes, *once]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["length"] == 4 and told["parity"] is None and "ratio" not in told
    for side in ("ours", "pure"):
        assert min(told[f"{side}_s"], told["floor_s"]) > 0 and told[f"{side}_rss_mib"] > 100
