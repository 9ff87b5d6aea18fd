"""`destruct export` of what two ranks saved under ZeRO-3 and FSDP, in one process that starts no others."""

from pathlib import Path

import pytest
import torch

from destruct.export import main
from tests.distributed.export_worker import DTYPES
from tests.exported import named, own_loss, plain_loss
from tests.forked import run_ranks

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


@pytest.fixture(scope="module", params=["deepspeed", "fsdp"])
def folder(request, tmp_path_factory) -> Path:
    """Two runs on two ranks, and what their engines had in the end."""
    folder: Path = tmp_path_factory.mktemp("runs")
    worker = "tests.distributed.export_worker"
    done = run_ranks(2, worker, str(folder), request.param)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_parameter_is_the_engines_and_the_folder_has_the_loss_of_the_run(folder, tmp_path, dtype):
    engine = torch.load(folder / f"{dtype}.pt", weights_only=False)
    for to, asked, want in (("out", [], engine["weights"]), ("masters", ["--dtype", "float32"], engine["masters"])):
        assert main([str(folder / dtype), "--to", str(tmp_path / to), "--max-shard", "30KB", *asked]) == 0
        found = named(tmp_path / to)
        assert found.keys() == want.keys()
        assert all(torch.equal(found[name], whole) for name, whole in want.items())
    assert all(whole.dtype == torch.float32 for whole in engine["masters"].values())
    assert own_loss(tmp_path / "out", engine["sets"]) == pytest.approx(engine["validation"], abs=1e-4)
    losses = plain_loss(tmp_path / "out", engine["sets"])
    # transformers rounds logits to the model's dtype, which the run's loss does not
    bound = {"float32": 1e-4, "bfloat16": 1e-3}[dtype]
    assert losses == pytest.approx({name: engine["validation"][name] for name in losses}, abs=bound)
