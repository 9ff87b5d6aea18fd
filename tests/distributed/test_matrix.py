"""Both modes x both references x k1, k2, k3 x ZeRO 0 to 3, and the exact KL to the initial model at ZeRO 0 and 3.

52 runs of two updates at two ranks, in one launch."""

import json

import pytest

from tests.distributed.matrix_worker import KL, MODES, STAGES
from tests.distributed.matrix_worker import WAYS as TRIED
from tests.forked import run_ranks

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

WAYS = [" ".join(way) for way in TRIED]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, dict]:
    """Figures by mode, reference, estimator and ZeRO stage."""
    folder = tmp_path_factory.mktemp("matrix")
    done = run_ranks(2, "tests.distributed.matrix_worker", str(folder))
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "results.json").read_text())


def figures(result: dict) -> dict[str, float]:
    """All that does not depend on the machine, by update and name."""
    named = {
        f"{number} {name}": value
        for number, update in enumerate(result["updates"])
        for name, value in update.items()
        if value is not None and name not in ("phase", "step") and not name.startswith(("time/", "memory/"))
    }
    return named | {f"after {name}": value for name, value in result["after"].items()}


@pytest.mark.parametrize("way", WAYS)
def test_every_zero_stage_trains_alike_in_float32(results, way):
    """Two updates at a learning rate of 0.01 lie between the stages' sums and these figures."""
    plain = figures(results[f"{way} 0"])
    assert len(plain) > 60
    for stage in [stage for stage in STAGES[1:] if f"{way} {stage}" in results]:
        assert figures(results[f"{way} {stage}"]) == pytest.approx(plain, rel=1e-3, abs=1e-4), stage


def test_every_run_starts_each_update_at_a_ratio_of_exactly_one_and_skips_nothing(results):
    assert len(results) == 52
    for name, result in results.items():
        assert [update["ppo/first_ratio_error"] for update in result["updates"]] == [0.0, 0.0], name
        assert [update["ppo/skipped"] for update in result["updates"]] == [0.0, 0.0], name
        assert [update["ppo/steps"] for update in result["updates"]] == [2.0, 2.0], name


def test_the_rolling_reference_is_the_policy_at_each_round_and_the_initial_one_is_left_behind(results):
    """A round before every update: then the KL of what is sampled is 0 to the one and not to the other."""
    for way in WAYS:
        sampled = [update["kl/sampled"] for update in results[f"{way} 3"]["updates"]]
        assert sampled[0] == 0, way
        assert (sampled[1] == 0) == ("frozen" in way), way
        assert results[f"{way} 3"]["from_initial"] > 0, way


def test_the_estimators_pull_in_different_ways(results):
    """From the second update on: only then is there a KL to the initial model to act on."""
    for mode in MODES:
        losses = [results[f"{mode} initial {kl} 3"]["updates"][1]["ppo/policy_loss"] for kl in KL]
        drifts = {results[f"{mode} initial {kl} 3"]["from_initial"] for kl in KL}
        assert len(drifts) == len(KL), losses


def test_the_exact_kl_is_reported_and_is_near_its_estimate_by_one_token_each(results):
    """k3 of the same tokens estimates it, with noise; the first of the first update's two steps is at a KL of 0."""
    for way in WAYS:
        first, second = results[f"{way} 3"]["updates"]
        exact = second["ppo/reference_kl_exact"]
        assert (exact > 0) == ("exact" in way), way
        if "exact" in way:
            assert 0 < first["ppo/reference_kl_exact"] < exact
            assert exact == pytest.approx(second["ppo/reference_kl"], rel=0.5)
