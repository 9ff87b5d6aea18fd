"""`destruct evaluate` of what two ranks saved under ZeRO-3 and FSDP: by one process, and by two ranks again."""

import json
from pathlib import Path

import pytest

from destruct.evaluate import main
from tests.forked import run_ranks

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
BACKENDS = ("deepspeed", "fsdp")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run of each backend, and in two.json what the same ranks then said of them: one launch."""
    folder: Path = tmp_path_factory.mktemp("runs")
    done = run_ranks(2, "tests.distributed.evaluate_worker", str(folder), *BACKENDS)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("A: held-out loss\n") == 1, "one rank speaks"
    return folder


def test_one_process_and_two_ranks_find_what_the_runs_logged(folder, tmp_path):
    deepspeed, fsdp = (str(folder / name) for name in BACKENDS)
    asked = ["--checkpoint", deepspeed, "--against", fsdp, "--json", str(tmp_path / "one.json"), "--samples", "5"]
    assert main(asked) == 0
    one, two = (json.loads(path.read_text()) for path in (tmp_path / "one.json", folder / "two.json"))
    for content in (one, two):
        for backend, found in zip(BACKENDS, content["checkpoints"], strict=True):
            log = logged(folder / backend)
            losses = {name: source["nats_per_token"]["value"] for name, source in found["sources"].items()}
            assert losses == pytest.approx(
                {name: log[f"validation/nats_per_token/{name}"] for name in losses}, abs=1e-4
            )
            assert found["mean"]["nats_per_token"]["value"] == pytest.approx(log["validation/mean"], abs=1e-4)
            assert [source["responses"]["prompts"] for source in found["sources"].values()] == [5, 5]
        assert content["notes"] == [] and len(content["prompts"]) >= 10
        assert all(row["paired"] for row in content["comparison"]["sources"].values())


def logged(run: Path) -> dict[str, float]:
    """The run's last validation."""
    entries = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [entry for entry in entries if entry["phase"] == "ppo" and "validation/mean" in entry][-1]
