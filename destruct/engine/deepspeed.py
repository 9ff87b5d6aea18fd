"""DeepSpeed ZeRO 0 to 3 behind the engine protocol.  Each oddity handled here was measured on DeepSpeed 0.19.8."""

import ctypes
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import deepspeed
import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.utils import combine_grad_norm_groups, get_global_norm_of_tensors
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from deepspeed.utils import set_z3_leaf_module
from torch import Tensor, nn
from transformers.integrations.deepspeed import (
    HfDeepSpeedConfig,
    prevent_arange_dtype_change,
    unset_hf_deepspeed_config,
)

from destruct.config.offload import IN_MEMORY, OffloadFolders
from destruct.engine.adam import adam_states, begin_adam
from destruct.engine.deepspeed_files import made_in_files, moved, read_as_mapped
from destruct.engine.deepspeed_start import leave_out
from destruct.engine.topology import Topology
from destruct.engine.units import layers_of
from destruct.engine.universal import convert, read_as_universal
from destruct.engine.zero3 import gathered, shard_bounds, whole_of, write_shard
from destruct.errors import DestructError
from destruct.heartbeat import HEART

leave_out()


@contextmanager
def loading_in_shards(config: dict) -> Iterator[None]:
    """While it lasts, transformers' `from_pretrained` puts each parameter into the ranks' ZeRO-3 shards as it is read.

    So no rank ever holds a whole model.  Below stage 3 nothing is changed: there every rank holds one anyway.
    """
    deepspeed.init_distributed()  # or the shards are those of one rank
    # transformers keeps a weak reference alone, and the last one made is that which counts.
    handle = HfDeepSpeedConfig(config) if config["zero_optimization"]["stage"] == 3 else None
    try:
        with _freed_memory_returned():
            yield
    finally:
        if handle is not None:
            unset_hf_deepspeed_config()


@contextmanager
def made_in_shards(config: dict) -> Iterator[None]:
    """While it lasts, modules are made as the ranks' ZeRO-3 shards, whatever weights they begin with."""
    deepspeed.init_distributed()
    # The rotary frequencies are made by torch.arange, which zero.Init would round to the parameters' dtype.
    with _freed_memory_returned(), prevent_arange_dtype_change(), deepspeed.zero.Init(config_dict_or_path=config):
        yield


@contextmanager
def _freed_memory_returned() -> Iterator[None]:
    """While it lasts, glibc gives the memory of freed tensors back at once.

    By itself it keeps ever larger ones for later, in between which the shards come to lie: a share of 516 MiB took
    1437 MiB to load, and takes 565 so (bench/loading.py).  Afterwards large tensors are reused, as without this.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda option, value: None)
    mmap_threshold, trim_threshold = -3, -1  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of malloc.h
    mallopt(mmap_threshold, 2**20)
    try:
        yield
    finally:
        mallopt(mmap_threshold, 2**25)
        mallopt(trim_threshold, 2**26)


class DeepSpeedEngine:
    """One training network.  The reduction to float32 and the clipping are DeepSpeed's.

    Args:
        folders: of what of ZeRO-3 rests in files.
    """

    def __init__(self, module: nn.Module, config: dict, topology: Topology, folders: OffloadFolders = IN_MEMORY):
        self.topology, self.folders = topology, folders
        self.accumulation: int = config["gradient_accumulation_steps"]
        self.stage: int = config["zero_optimization"]["stage"]
        if self.stage == 3:
            _gather_by_layers(module)
        with made_in_files(folders):
            self.engine, *_ = deepspeed.initialize(model=module, model_parameters=module.parameters(), config=config)
        self.module = self.engine.module
        self._backwards = 0
        self._known: AbstractContextManager[object] = nullcontext()  # in which DeepSpeed knows the gradient's norm
        self._zero_shard_padding()
        zero = self.engine.optimizer
        if self.stage == 3 and isinstance(zero.optimizer, torch.optim.Adam | torch.optim.AdamW):
            begin_adam(zero.optimizer, zero.fp32_partitioned_groups_flat, torch.device("cpu"))

    def __call__(self, *args: Any) -> Any:
        HEART.beat()
        return self.engine(*args)

    def backward(self, loss: Tensor) -> None:
        HEART.beat()
        # DeepSpeed averages over ranks; the product is also what keeps `scale_wrt_gas=False` from being ignored,
        # which happens (stage 0, and 1 with bf16) when the tensor is the very one that the forward returned.
        self.engine.backward(loss * self.topology.world_size, scale_wrt_gas=False)
        self._backwards += 1
        if self._backwards < self.accumulation:
            self.engine.step()  # counts the micro-batch; steps at the last one alone

    def grad_norm(self) -> float:
        assert self._backwards == self.accumulation, f"{self._backwards} of {self.accumulation} micro-batches"
        optimizer, self._known = self.engine.optimizer, nullcontext()
        if self.stage == 0:  # float32, as the config demands: a bare torch optimizer
            return float(nn.utils.get_total_norm([p.grad for p in self.module.parameters() if p.grad is not None]))
        if isinstance(optimizer, BF16_Optimizer):
            norm = float(get_global_norm_of_tensors(optimizer.get_grads_for_norm()[0], mpu=optimizer.mpu))
            return norm if norm >= 0 else float("nan")  # it says -1 where the gradient is not finite
        if self.stage < 3:
            optimizer._wait_for_offload_copies()
        method = "_get_norm_groups" if self.stage == 3 else "scaled_global_norm"
        norm = getattr(optimizer, method)()
        # Else `step` would measure it again.
        self._known = patch.object(optimizer, method, lambda: norm)
        return float(combine_grad_norm_groups(norm) if self.stage == 3 else norm)

    def step(self, lr: float) -> None:
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        with self._known:
            self.engine.step()
        self._backwards = 0

    def drop_gradients(self) -> None:
        # DeepSpeed has no call for this: each stage keeps partial gradients and a count of micro-batches of its own.
        self.engine.zero_grad()
        optimizer = self.engine.optimizer
        optimizer.zero_grad()
        if self.stage in (1, 2) and hasattr(optimizer, "averaged_gradients"):
            optimizer.averaged_gradients = {}
            optimizer.micro_step_id = -1
            # Set by a gradient that is not finite when the optimizer is offloaded: it drops the next good step.
            optimizer.local_overflow = False
        self.engine.micro_steps = 0
        self._backwards = 0

    @torch.no_grad()
    def fill(self, replica: nn.Module) -> None:
        targets = dict(replica.named_parameters())
        for name, whole in self.tensors_in_full():
            targets[name].copy_(whole)

    @torch.no_grad()
    def in_full(self, name: str) -> Tensor:
        return whole_of(self.module.get_parameter(name), self.topology)

    @torch.no_grad()
    def tensors_in_full(self) -> Iterator[tuple[str, Tensor]]:
        yield from gathered(self.module, self.topology)

    def states(self) -> Iterator[Tensor]:
        for p in self.module.parameters():
            yield getattr(p, "ds_tensor", p).data
        yield from adam_states(getattr(self.engine.optimizer, "optimizer", self.engine.optimizer))

    def save(self, folder: Path, role: str) -> None:
        # DeepSpeed meets in collectives after each write: a rank whose write failed goes through them and raises then.
        failures: list[Exception] = []
        with (
            HEART.waiting(),
            _late(failures, self.engine.checkpoint_engine, "save"),
            _late(failures, self.engine, "_copy_recovery_script"),
        ):
            self.engine.save_checkpoint(str(folder), tag=role, save_latest=False)
        if failures:
            raise failures[0]

    def load(self, folder: Path, role: str, written_by: int, scratch: Path) -> None:
        resharded = written_by != self.topology.world_size and self.stage > 0  # stage 0 is whole on every rank
        if resharded:
            self.topology.first_rank_makes(lambda: convert(folder / role, scratch / role))
        with read_as_mapped(self.folders), read_as_universal(self.engine) if resharded else nullcontext():
            place = str(scratch if resharded else folder)
            path, _ = self.engine.load_checkpoint(place, tag=role, load_lr_scheduler_states=False)
        if path is None:
            raise DestructError(
                f"{folder / role} holds no DeepSpeed checkpoint for {self.topology.world_size} ranks",
                "resume with the engine.backend that wrote it",
            )
        self.drop_gradients()

    @torch.no_grad()
    def _zero_shard_padding(self) -> None:
        """The padding of a stage-3 shard and of its master is uninitialised: zeroed, or no two runs write the same."""
        if self.stage < 3:
            return
        optimizer = self.engine.optimizer
        for group, masters in zip(optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True):
            position = 0
            for p in group:
                start, end = shard_bounds(p, self.topology)
                size = p.ds_tensor.numel()
                p.ds_tensor.view(-1)[end - start :].zero_()
                masters.data[position + end - start : position + size].zero_()
                position += size


class DeepSpeedFrozen:
    """Inference alone: ZeRO-3 without an optimizer, its shards on the CPU, or in files.

    Args:
        folder: of the files.
    """

    def __init__(self, module: nn.Module, config: dict, topology: Topology, folder: Path | None = None):
        self.topology = topology
        _gather_by_layers(module)
        self.engine, *_ = deepspeed.initialize(model=module.requires_grad_(False).eval(), config=config)
        self.module = self.engine.module
        for q in self.module.parameters():
            start, end = shard_bounds(q, topology)
            q.ds_tensor.data.view(-1)[end - start :].zero_()  # what pads the last shards is whatever memory held
            if folder is not None:
                q.ds_tensor.data = moved(folder, q.ds_tensor)

    @torch.no_grad()
    def __call__(self, *args: Any) -> Any:
        HEART.beat()
        return self.engine(*args)

    @torch.no_grad()
    def refresh(self, policy: DeepSpeedEngine) -> None:
        self._drop_gathered()
        pairs = zip(self.module.named_parameters(), policy.module.named_parameters(), strict=True)
        for (name, q), (policy_name, p) in pairs:
            assert name == policy_name, f"frozen {name} against policy {policy_name}"
            if policy.stage == 3:
                q.ds_tensor.copy_(p.ds_tensor)
            else:
                write_shard(q, p, self.topology)

    def _drop_gathered(self) -> None:
        """Parameters still gathered after a forward would be used again as they are, a refresh unseen."""
        still = [q for q in self.module.parameters() if q.ds_status is ZeroParamStatus.AVAILABLE]
        if still:
            still[0].partition(param_list=still, has_been_updated=False)

    def states(self) -> Iterator[Tensor]:
        for q in self.module.parameters():
            yield q.ds_tensor.data

    @torch.no_grad()
    def head(self) -> Tensor:
        return whole_of(self.module.head.weight, self.topology)

    @torch.no_grad()
    def tensors_in_full(self) -> Iterator[tuple[str, Tensor]]:
        yield from gathered(self.module, self.topology)

    @torch.no_grad()
    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        self._drop_gathered()
        for name, q in self.module.named_parameters():
            write_shard(q, tensors[name], self.topology)


def _gather_by_layers(network: nn.Module) -> None:
    """Fetch a decoder layer's parameters together, an eighth less of an iteration than module by module."""
    for layer in layers_of(network):
        set_z3_leaf_module(layer, True)


@contextmanager
def _late(failures: list[Exception], owner: Any, name: str) -> Iterator[None]:
    """While it lasts, collect what the method `name` of `owner` raises."""
    method = getattr(owner, name)

    def attempt(*args: Any, **kwargs: Any) -> None:
        try:
            with HEART.writing():
                method(*args, **kwargs)
        except Exception as error:
            failures.append(error)

    setattr(owner, name, attempt)
    try:
        yield
    finally:
        delattr(owner, name)
