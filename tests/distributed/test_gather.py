"""`rollout.gather: layers` samples what a whole copy of the policy samples, bit for bit, and holds none."""

import json

import pytest

from tests.forked import run_ranks

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, dict]:
    """Two updates at two ranks by backend, mode and way of gathering, in bfloat16."""
    folder = tmp_path_factory.mktemp("gather")
    done = run_ranks(2, "tests.distributed.gather_worker", str(folder))
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "results.json").read_text())


def figures(updates: list[dict]) -> list[dict]:
    return [{k: x for k, x in update.items() if not k.startswith(("time/", "memory/"))} for update in updates]


@pytest.mark.parametrize("mode", ["generate", "per_position"])
@pytest.mark.parametrize("backend", ["deepspeed", "fsdp"])
def test_rollouts_prompts_and_figures_are_those_of_a_whole_copy(results, backend, mode):
    once, layers = (results[f"{backend} {mode} {gather}"] for gather in ("once", "layers"))
    assert len(once["updates"]) == 2 and once["held"] > 10_000 and layers["held"] == 0
    assert figures(layers["updates"]) == figures(once["updates"])
    assert layers["said"] == once["said"]
    assert once["said"].count("topic") > 10, "the user's prompts too, which have many lengths"
