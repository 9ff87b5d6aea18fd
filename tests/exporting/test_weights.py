"""The files of each backend: the order of ranks, and files that are gone."""

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from destruct.checkpoint import manifest
from destruct.errors import DestructError
from destruct.exporting.source import open_source
from destruct.exporting.weights import READERS, reader
from tests.checkpoint.test_comparing import reseal
from tests.exporting.test_folder import set_backend


def test_eleven_ranks_are_put_together_in_their_order_and_not_in_that_of_their_names(tmp_path):
    shapes = OrderedDict({"lm.w": torch.Size([4, 5])})
    flat = torch.arange(22.0)  # two elements fill the last rank up
    for rank, piece in enumerate(flat.chunk(11)):
        zero = {"fp32_flat_groups": [piece], "partition_count": 11, "optimizer_state_dict": {"state": {}}}
        torch.save({"optimizer_state_dict": zero}, tmp_path / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        torch.save({"param_shapes": [shapes]}, tmp_path / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
    names, read = READERS["deepspeed"](tmp_path, shapes)
    assert names == {"lm.w"} and torch.equal(read("lm.w"), torch.arange(20.0).view(4, 5))


@pytest.mark.slow
def test_a_file_of_dcp_that_is_gone_is_told(run):
    checkpoint = run / "checkpoints" / "step-00000002"
    set_backend(checkpoint, "fsdp")
    policy = checkpoint / "policy"
    (policy / "state.pt").unlink()
    dcp.save({"weights.lm.w": torch.zeros(3)}, checkpoint_id=policy, no_dist=True)
    reseal(checkpoint)
    assert manifest.read(checkpoint)
    read = reader(open_source(checkpoint), {"lm.w": torch.Size([3])})
    assert torch.equal(read("lm.w"), torch.zeros(3))
    for path in policy.glob("*.distcp"):
        path.unlink()
    with pytest.raises(DestructError, match="policy cannot be read: No such file or directory"):
        read("lm.w")


@pytest.mark.slow
def test_a_copy_that_is_no_safetensors_file_any_more_is_told(run):
    source = open_source(run, "frozen")
    Path(source.checkpoint / "frozen" / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(DestructError, match="frozen cannot be read: "):
        reader(source, {})
