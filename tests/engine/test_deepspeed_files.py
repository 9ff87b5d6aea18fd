"""Tensors in files without a name: what they hold, what they leave behind, what a full disk says."""

import gc
import os
import resource
import shutil

import pytest
import torch

from destruct.engine.deepspeed_files import file_tensor, moved
from destruct.errors import DestructError


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_begins_as_zeros_and_keeps_what_is_written(tmp_path, dtype):
    tensor = file_tensor(tmp_path, 5000, dtype)
    assert tensor.dtype == dtype and tensor.count_nonzero() == 0
    values = torch.randn(5000, generator=torch.Generator().manual_seed(0)).to(dtype)
    tensor.copy_(values)
    assert torch.equal(tensor, values)


def test_its_file_has_no_name_and_its_room_comes_back_with_it(tmp_path):
    def blocks() -> int:
        free = os.statvfs(tmp_path)
        return free.f_bfree * free.f_frsize

    before = blocks()
    tensor = file_tensor(tmp_path, 2**28, torch.float32)
    assert list(tmp_path.iterdir()) == []
    assert before - blocks() > 2**29, "the room is taken at once, not page by page"
    del tensor
    gc.collect()
    assert before - blocks() < 2**29


def test_a_copy_has_the_shape_and_the_values_and_is_apart(tmp_path):
    original = torch.arange(6.0).view(2, 3)
    copy = moved(tmp_path, original.requires_grad_())
    assert torch.equal(copy, original) and not copy.requires_grad
    copy.zero_()
    assert original.detach().sum() == 15


def test_nothing_takes_no_file(tmp_path):
    assert file_tensor(tmp_path, 0, torch.float32).shape == (0,)


def test_a_full_disk_is_told_before_a_page_is_written(tmp_path):
    """The kernel refuses this process every file beyond 1 MiB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    try:
        with pytest.raises(DestructError) as caught:
            file_tensor(tmp_path, 2**28, torch.float32)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    free = shutil.disk_usage(tmp_path).free / 2**30
    assert caught.value.problem.startswith(f"nvme_path = {tmp_path} takes no 1.00 GiB more, with ")
    assert float(caught.value.problem.split(" with ")[1].split()[0]) == pytest.approx(free, rel=0.1)
    assert "name another folder" in caught.value.remedy and list(tmp_path.iterdir()) == []
