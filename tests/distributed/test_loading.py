"""Pretrained weights in the shards of ZeRO-3 and FSDP: the bits of the folder, on two ranks without a whole model."""

import json

import pytest

from tests.forked import run_ranks
from tests.pretrained import write_llama, write_reward_model

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

BACKENDS = pytest.mark.parametrize("backend", ["zero3", "fsdp"])


@pytest.fixture(scope="module")
def loaded(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("loading")
    write_llama(
        folder / "llama", pad_token_id=0, eos_token_id=0
    )  # one token for both, whose embedding is a row as others
    write_reward_model(folder / "reward")
    worker = "tests.distributed.loading_worker"
    done = run_ranks(2, worker, str(folder), str(folder / "results.json"))
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "results.json").read_text())


@BACKENDS
@pytest.mark.parametrize("role", ["policy", "value", "frozen", "reward"])
def test_every_parameter_has_the_bits_of_the_folder(loaded, backend, role):
    """The frozen model was made in shards, without weights, and refreshed from the policy."""
    assert loaded[backend][role] == []


@BACKENDS
def test_a_rank_holds_half_before_any_engine_exists(loaded, backend):
    assert loaded[backend]["share"] == pytest.approx(0.5, abs=0.01)


@BACKENDS
def test_tied_embeddings_stay_tied_and_rotary_frequencies_are_not_rounded(loaded, backend):
    assert loaded[backend]["tied"] is True
    assert loaded[backend]["rotary"] == [True, True]


@BACKENDS
def test_the_sharded_reward_model_scores_as_transformers_does_one_text_at_a_time(loaded, backend):
    """bfloat16: two decimal digits."""
    got, want = loaded[backend]["scores"]
    assert got == pytest.approx(want, rel=2e-2, abs=2e-2)
