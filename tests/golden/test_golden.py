"""Ten updates of a small run against the figures that it gave before: no change moves a digit unnoticed.

`make golden` writes figures.jsonl anew; a change of it is explained under "Numerics" in CHANGELOG.md.
"""

import json
import os
import sys
from pathlib import Path

import pytest
import torch

from destruct.train import main

pytestmark = pytest.mark.slow

HERE = Path(__file__).resolve().parent
FIGURES = HERE / "figures.jsonl"
LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")
MACHINE = ("time/", "memory/")


def train(folder: Path) -> list[dict]:
    """The lines of metrics.jsonl without what depends on the machine, then those of the summary."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the order of sums, and so their last digits
    try:
        assert main(["--config", str(HERE / "run.yaml"), f"run.folder={folder}"]) == 0
    finally:
        torch.set_num_threads(threads)
    lines = [json.loads(line) for line in (folder / "golden" / "metrics.jsonl").read_text().splitlines()]
    return [{name: x for name, x in line.items() if not name.startswith(MACHINE)} for line in lines]


@pytest.fixture(scope="module")
def lines(tmp_path_factory) -> list[dict]:
    with pytest.MonkeyPatch.context() as patch:
        for name in LAUNCHER:
            patch.setenv(name, "")  # so that what the run sets is taken back
            patch.delenv(name)
        return train(tmp_path_factory.mktemp("golden"))


def test_no_figure_of_the_run_has_moved(lines):
    """1e-3: other processors sum in another order, and ten updates make 1e-4 of it."""
    before = [json.loads(line) for line in FIGURES.read_text().splitlines()]
    assert [(line["phase"], line["step"]) for line in lines] == [(line["phase"], line["step"]) for line in before]
    for now, then in zip(lines, before, strict=True):
        assert now.keys() == then.keys()
        figures = [name for name in then if name not in ("phase", "step") and then[name] is not None]
        got, want = ({name: line[name] for name in figures} for line in (now, then))
        assert got == pytest.approx(want, rel=1e-3, abs=1e-5), (then["phase"], then["step"])


def test_the_run_goes_through_what_it_is_meant_to_watch(lines):
    """Breaches raise beta, early stops leave steps out, weights move, the frozen model lags behind."""
    updates = [line for line in lines if "ppo/steps" in line]
    assert updates[-1]["kl/breaches"] >= 1 and updates[-1]["kl/coef"] > 0.05
    assert 0 < sum(line["ppo/steps"] < line["ppo/steps_planned"] for line in updates) < len(updates)
    assert sum(line["ppo/clip_fraction"] for line in updates) > 0
    weights = [line["curriculum/weight/arithmetic"] for line in lines if "curriculum/weight/arithmetic" in line]
    assert weights[0] == weights[1] == 0.25 and len(set(weights)) > 2
    assert any(0 < line["rollout/eos_rate"] < 1 for line in updates)


if __name__ == "__main__":
    import tempfile

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as scratch:
        FIGURES.write_text("".join(json.dumps(line) + "\n" for line in train(Path(scratch))), encoding="utf-8")
    sys.exit(0)
