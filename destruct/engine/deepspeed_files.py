"""ZeRO-3 tensors in mapped files: the kernel keeps in memory what there is room for, and writes the rest to the disk.

DeepSpeed's own swapper (`"device": "nvme"`) is not used: with 0.19.8 a resumed run does not go on as the other would
have (docs/lab.md).  To DeepSpeed these tensors are in the host's memory, and everything else is as there.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from mmap import MAP_SHARED
from pathlib import Path
from unittest.mock import patch

import torch
from deepspeed.runtime.zero import stage3
from torch import Tensor
from torch.utils.serialization import config as serialization

from destruct.config.offload import IN_MEMORY, OffloadFolders
from destruct.errors import DestructError
from destruct.exits import Exit


def file_tensor(folder: Path, elements: int, dtype: torch.dtype) -> Tensor:
    """Zeros in a file of the folder, which never has a name and is gone with the tensor, however the process ends.

    Its room on the disk is taken at once, so that none is missing when a page is written later; what a file system that
    copies on writing (btrfs, ZFS) promises there is less.

    Args:
        elements: of the tensor, which is flat.

    Raises:
        DestructError: there is no room for it, or the file system maps no files.
    """
    size = elements * dtype.itemsize
    if not size:
        return torch.zeros(0, dtype=dtype)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size)
            return torch.from_file(f"/proc/self/fd/{file.fileno()}", shared=True, size=elements, dtype=dtype)
    except (OSError, RuntimeError) as error:  # the latter is torch's, where mapping fails
        free = shutil.disk_usage(folder).free / 2**30 if folder.is_dir() else 0.0
        reason = getattr(error, "strerror", error)
        raise DestructError(
            f"nvme_path = {folder} takes no {size / 2**30:.2f} GiB more, with {free:.2f} free: {reason}",
            "make room there, name another folder, or offload to the CPU (destruct plan says how much a run takes)",
            Exit.ENVIRONMENT,
        ) from None


def moved(folder: Path, tensor: Tensor) -> Tensor:
    """A copy in a file, of the same shape."""
    return file_tensor(folder, tensor.numel(), tensor.dtype).view(tensor.shape).copy_(tensor.detach())


@contextmanager
def made_in_files(folders: OffloadFolders) -> Iterator[None]:
    """While it lasts, the optimizers that DeepSpeed makes keep in files what rests there."""
    made = type("Stage3InFiles", (_Stage3InFiles,), {"folders": folders})
    with patch.object(stage3, "DeepSpeedZeroOptimizer_Stage3", made):
        yield


class _Stage3InFiles(stage3.DeepSpeedZeroOptimizer_Stage3):
    """The flat tensors of each sub-group in files, from before anything is written to them where that can be."""

    folders = IN_MEMORY

    def _create_param_groups_fp16_flat_cpu_memory(self) -> None:
        folder = self.folders.weights
        if folder is None:
            return super()._create_param_groups_fp16_flat_cpu_memory()
        for group in self.trainable_param_groups:
            elements = sum(p.partition_numel() for p in group["params"])
            self.param_groups_fp16_flat_cpu_memory.append(file_tensor(folder, elements, self.dtype))

    def _create_fp32_partitions(self) -> None:
        super()._create_fp32_partitions()
        if folder := self.folders.states:
            for master in self.fp32_partitioned_groups_flat:
                master.data = moved(folder, master)
                self._begin(master, folder)

    def _begin(self, master: Tensor, folder: Path) -> dict[str, Tensor]:
        """The state that torch's Adam begins with, which would make it in memory at its first step."""
        moments = {name: file_tensor(folder, len(master), master.dtype) for name in ("exp_avg", "exp_avg_sq")}
        self.optimizer.state[master] = {"step": torch.tensor(0.0), **moments}
        return self.optimizer.state[master]

    def initialize_optimizer_states(self) -> None:
        super().initialize_optimizer_states()
        if folder := self.folders.states:
            for master in self.fp32_partitioned_groups_flat:
                master.grad = moved(folder, master.grad)

    def _rigid_load_state_dict(self, *args: object, **kwargs: object) -> None:
        super()._rigid_load_state_dict(*args, **kwargs)
        if folder := self.folders.states:
            for master in self.fp32_partitioned_groups_flat:
                loaded = self.optimizer.state.get(master, {})  # empty where the run had not stepped yet
                begun = self._begin(master, folder)
                for name in loaded.keys() & begun.keys():
                    begun[name].copy_(loaded[name])


@contextmanager
def read_as_mapped(folders: OffloadFolders) -> Iterator[None]:
    """While it lasts, `torch.load` maps a checkpoint where the states rest in files, as it may not fit into memory.

    Shared, as a private mapping larger than memory is refused; nothing writes to it, or keeps it after the load.
    """
    if folders.states is None:
        yield
        return
    with patch.object(serialization.load, "mmap", True), patch.object(serialization.load, "mmap_flags", MAP_SHARED):
        yield
