"""What two ranks saved, one and three go on from: the same weights, and a next step that needs the same moments."""

from pathlib import Path

import pytest
import torch

from destruct.engine.zero_files import LAYOUTS, read_saved
from destruct.exporting.weights import READERS
from tests.distributed.elastic_worker import WAYS
from tests.forked import run_ranks

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What all of them left."""
    folder: Path = tmp_path_factory.mktemp("elastic")
    worker = "tests.distributed.elastic_worker"
    for ranks in (2, 1, 3):
        done = run_ranks(ranks, worker, str(folder), "2")
        assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def results(folder) -> dict[int, dict]:
    """By the number of ranks."""
    return {ranks: torch.load(folder / f"{ranks}.pt") for ranks in (1, 2, 3)}


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize(("way", "dtype"), WAYS)
def test_weights_come_over_bit_for_bit_and_the_next_step_is_the_same_but_for_rounding(results, way, dtype, ranks):
    """After three steps Adam without its moments would go another way."""
    two, other = results[2][f"{way} {dtype}"], results[ranks][f"{way} {dtype}"]
    assert two["weights"].keys() == other["weights"].keys()
    assert all(torch.equal(whole, other["weights"][name]) for name, whole in two["weights"].items())
    rounding = {"float32": 1e-6, "bfloat16": 1e-2}[dtype]
    assert other["norm"] == pytest.approx(two["norm"], rel=rounding)
    for name, whole in two["after"].items():
        assert not torch.equal(whole, two["weights"][name]), "a step changes it"
        assert torch.allclose(other["after"][name], whole, rtol=rounding, atol=1e-7), name


@pytest.mark.parametrize(("way", "dtype"), [way for way in WAYS if way[0] in ("zero1", "zero2", "zero3")])
def test_shards_cut_into_parameters_are_the_parts_of_the_weights_and_moments_that_deepspeed_makes_whole(
    results, folder, way, dtype
):
    """DeepSpeed's own conversion for one rank has them whole."""
    saved = folder / f"{way} {dtype}" / "policy"
    zero = [read_saved(path)["optimizer_state_dict"] for path in sorted(saved.glob("*optim_states.pt"))]
    weights, optimizer = next(names for names in LAYOUTS.items() if names[0] in zero[0])
    for name in results[2][f"{way} {dtype}"]["weights"]:
        for kind in ("fp32", "exp_avg", "exp_avg_sq"):
            converted = torch.load(folder / f"{way} {dtype}" / "for 1" / "policy" / "zero" / name / f"{kind}.pt")
            whole = converted["param"] if isinstance(converted, dict) else converted
            flat = [each[weights][0] if kind == "fp32" else each[optimizer]["state"][0][kind] for each in zero]
            parts = torch.cat([rank[name] for rank in flat if name in rank])
            assert torch.equal(parts[: whole.numel()], whole.flatten()), (name, kind)
            assert not parts[whole.numel() :].any(), "padding"


@pytest.mark.parametrize(("way", "dtype"), WAYS)
def test_a_process_without_ranks_reads_each_weight_that_two_saved_and_in_float32(results, folder, way, dtype):
    """Masters: rounded, they are the weights that the engines compute with."""
    weights = results[2][f"{way} {dtype}"]["weights"]
    backend = "fsdp" if way == "fsdp" else "deepspeed"
    shapes = {name: whole.shape for name, whole in weights.items()}
    names, read = READERS[backend](folder / f"{way} {dtype}" / "policy", shapes)
    assert names == weights.keys()
    for name, whole in weights.items():
        assert read(name).dtype == torch.float32
        assert torch.equal(read(name).to(whole.dtype), whole), name


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_network_of_zero3_that_made_no_step_goes_on_at_other_ranks_too(results, ranks):
    """DeepSpeed's conversion reads moments, which torch's Adam would make in its first step."""
    other, two = results[ranks]["unstepped"], results[2]["unstepped"]
    assert all(torch.equal(other["weights"][name], whole) for name, whole in two["weights"].items())
    assert other["norm"] == pytest.approx(two["norm"], rel=1e-2)
    assert all(torch.allclose(other["after"][name], whole, rtol=1e-2) for name, whole in two["after"].items())
