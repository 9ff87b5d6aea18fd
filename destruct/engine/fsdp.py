"""FSDP2 behind the engine protocol: float32 shards, products in the network's dtype, checkpoints by torch's DCP.

Each decoder layer is a unit that is gathered for its forward and its backward; so are the input embeddings and the
head, unless they are one tied weight, which stays with the root.
"""

import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from traceback import StackSummary
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from destruct.config.deepspeed import Optimizer
from destruct.config.offload import Offload
from destruct.engine.adam import adam_states, begin_adam
from destruct.engine.topology import Topology
from destruct.engine.units import layers_of
from destruct.errors import DestructError
from destruct.heartbeat import HEART
from destruct.ops.head import FusedHead


class FsdpEngine:
    """One training network and its AdamW, whose moments are sharded like the weights.

    Args:
        module: the network in the dtype that its products are to have: whole on every rank, or as `load_weights` gives
            it for several ranks, or both of it.
    """

    def __init__(
        self, module: nn.Module, optimizer: Optimizer, accumulation: int, max_grad_norm: float, topology: Topology
    ):
        self.module: Any = module
        self.topology = topology
        self.accumulation = accumulation
        self.max_grad_norm = max_grad_norm
        self.dtype = next(module.parameters()).dtype
        # Rounding the inputs would round old logprobs and advantages, too.
        policy = MixedPrecisionPolicy(self.dtype, torch.float32, cast_forward_inputs=False)
        _shard(module, torch.float32, topology.device, topology, mp_policy=policy)
        self.parameters: dict[str, Any] = dict(module.named_parameters())  # DTensors from here on
        arguments = optimizer.params.model_dump(exclude={"lr", "torch_adam"})
        # DeepSpeed's "Adam" decouples weight decay too (adam_w_mode is its default), so both names are AdamW.
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=0.0, fused=True, **arguments)
        begin_adam(self.optimizer, self.parameters.values(), topology.device)

    def __call__(self, *args: Any) -> Any:
        HEART.beat()
        output = self.module(*args)
        if not torch.is_grad_enabled():
            # Else the root stays gathered until a backward, takes memory, and does not see what is loaded in between.
            self.module.reshard()
        return output

    def backward(self, loss: Tensor) -> None:
        HEART.beat()
        # FSDP averages over the ranks.  It reduces each micro-batch, so that no rank ever holds a whole gradient.
        (loss * self.topology.world_size).backward()

    def grad_norm(self) -> float:
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        self._norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        return float(self._norm)

    def step(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        nn.utils.clip_grads_with_norm_(self.parameters.values(), self.max_grad_norm, self._norm)
        self.optimizer.step()
        self.drop_gradients()

    def drop_gradients(self) -> None:
        self.optimizer.zero_grad()

    @torch.no_grad()
    def fill(self, replica: nn.Module) -> None:
        targets = dict(replica.named_parameters())
        for name, whole in self.tensors_in_full():
            targets[name].copy_(whole)

    @torch.no_grad()
    def in_full(self, name: str) -> Tensor:
        return _whole(self.parameters[name], self.dtype, self.topology)

    def tensors_in_full(self) -> Iterator[tuple[str, Tensor]]:
        for name in self.parameters:
            yield name, self.in_full(name)

    def states(self) -> Iterator[Tensor]:
        for state in adam_states(self.optimizer):
            yield state.to_local() if isinstance(state, DTensor) else state

    def save(self, folder: Path, role: str) -> None:
        try:
            with HEART.waiting():
                dcp.save(self._state(), checkpoint_id=folder / role)
        except dcp.CheckpointException as error:  # on every rank; it is no Exception
            failures = list(error.failures.values())
            for failure, trace in failures:
                if not _is_of_the_disk(failure, trace):
                    raise failure from error
            raise OSError(f"{folder / role}: {failures[0][0]}") from error

    def load(self, folder: Path, role: str, written_by: int, scratch: Path) -> None:
        if not (folder / role / ".metadata").is_file():
            raise DestructError(
                f"{folder / role} holds no checkpoint of FSDP",
                "resume with the engine.backend that wrote the checkpoint",
            )
        dcp.load(self._state(), checkpoint_id=folder / role)
        self.drop_gradients()

    def _state(self) -> dict[str, Any]:
        """Views of the weights and of Adam's state by name, which DCP writes from and reads into."""
        return {
            "weights": {name: p.detach() for name, p in self.parameters.items()},
            "adam": {name: self.optimizer.state[p] for name, p in self.parameters.items()},
        }


class SavedTensors(dcp.FileSystemReader):
    """What `FsdpEngine.save` wrote into a network's folder, whole, in any process, which needs no others.

    The index is read once: it grows with the tensors times the ranks, and DCP would read it anew for each tensor.
    """

    def __init__(self, folder: Path):
        super().__init__(folder)
        self._index = super().read_metadata()

    def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
        """For DCP."""
        return self._index

    @property
    def names(self) -> list[str]:
        """`weights.<name>`, `adam.<name>.exp_avg` and so on."""
        return list(self._index.state_dict_metadata)

    def tensor(self, name: str) -> Tensor:
        """One of these, put together from the shards of all ranks.

        Raises:
            OSError: a file cannot be read.
        """
        about: Any = self._index.state_dict_metadata[name]
        whole = torch.empty(about.size, dtype=about.properties.dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that there is one process
            try:
                dcp.load({name: whole}, storage_reader=self, no_dist=True)
            except dcp.CheckpointException as error:  # it is no Exception
                raise next(iter(error.failures.values()))[0] from error
        return whole


class FsdpFrozen:
    """Inference alone: shards in the network's dtype, in the host's memory when offloaded, gathered anew each time.

    Args:
        module: as for `FsdpEngine`; where its parameters are on the meta device they come with the first refresh.
        offload: where the shards rest; None, or no GPU: on the rank's device.
    """

    def __init__(self, module: nn.Module, offload: Offload | None, topology: Topology):
        self.module: Any = module.requires_grad_(False).eval()
        self.topology = topology
        policy, device = OffloadPolicy(), topology.device
        if offload is not None and offload.device == "cpu" and device.type == "cuda":
            policy, device = CPUOffloadPolicy(offload.pin_memory), torch.device("cpu")
        # What stayed gathered after a forward would not see the next refresh.
        dtype = next(module.parameters()).dtype
        _shard(module, dtype, device, topology, reshard_after_forward=True, offload_policy=policy)

    @torch.no_grad()
    def __call__(self, *args: Any) -> Any:
        HEART.beat()
        output = self.module(*args)
        if hasattr(self.module, "reset_iter_state"):  # from torch 2.13 on
            # Else the order of all forwards is remembered for a backward that never comes.
            self.module.reset_iter_state()
        return output

    @torch.no_grad()
    def refresh(self, policy: FsdpEngine) -> None:
        pairs = zip(self.module.named_parameters(), policy.parameters.items(), strict=True)
        for (name, q), (policy_name, p) in pairs:
            assert name == policy_name, f"frozen {name} against policy {policy_name}"
            q.to_local().copy_(p.to_local())

    def states(self) -> Iterator[Tensor]:
        for q in self.module.parameters():
            yield q.to_local()

    @torch.no_grad()
    def head(self) -> Tensor:
        weight = self.module.head.weight
        return _whole(weight, weight.dtype, self.topology)

    @torch.no_grad()
    def tensors_in_full(self) -> Iterator[tuple[str, Tensor]]:
        for name, q in self.module.named_parameters():
            yield name, _whole(q, q.dtype, self.topology)

    @torch.no_grad()
    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        for name, q in self.module.named_parameters():
            q.to_local().copy_(_part_of(tensors[name], q))


def _shard(module: nn.Module, dtype: torch.dtype, device: torch.device, topology: Topology, **policies: Any) -> None:
    """Make every decoder layer, untied embeddings and head a unit of FSDP, and the module the root of the rest.

    Args:
        dtype, device: of the shards.  No rank ever makes more than them and one whole parameter of a network that is
            loaded in shards, or on the meta device.
    """
    given, buffers = _emptied(module, dtype), {name: x.to(topology.device) for name, x in module.named_buffers()}
    mesh: DeviceMesh = init_device_mesh(topology.device.type, (topology.world_size,))
    for unit in _units(module):
        fully_shard(unit, mesh=mesh, **policies)
    fully_shard(module, mesh=mesh, **policies)
    module.to_empty(device=device)
    for name, buffer in buffers.items():
        owner, _, leaf = name.rpartition(".")
        module.get_submodule(owner)._buffers[leaf] = buffer
    p: Any
    with torch.no_grad():
        for name, p in module.named_parameters():
            if not given[name].is_meta:
                p.to_local().copy_(_part_of(given.pop(name), p))


def _emptied(module: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Put parameters on the meta device in the place of the module's, tied where they were; returns these by name."""
    given = {name: p.detach() for name, p in module.named_parameters()}
    empty: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for leaf, p in part._parameters.items():
            if p is not None:
                fresh = nn.Parameter(torch.empty(p.shape, dtype=dtype, device="meta"), p.requires_grad)
                part._parameters[leaf] = empty.setdefault(id(p), fresh)
    return given


def _part_of(whole: Tensor, q: DTensor) -> Tensor:
    """This rank's part of a parameter that is whole, or already in the shards of `q`."""
    if not isinstance(whole, DTensor):
        # src_data_rank=None: every rank cuts its own shard, and nothing is sent.
        whole = distribute_tensor(whole.to(q.device), q.device_mesh, q.placements, src_data_rank=None)
    return whole.to_local()


def _units(module: nn.Module) -> list[nn.Module]:
    """The parts of a network that are gathered by themselves.

    Of what is not called but read, such as the relative positions of DeBERTa, nothing would be gathered: it stays with
    its layer or with the root.
    """
    layers = layers_of(module)
    within = {id(inner) for layer in layers for inner in layer.modules()}
    ends = {id(part): part for part in module.modules() if isinstance(part, FusedHead)}
    for part in module.modules():
        if isinstance(part, PreTrainedModel) and isinstance(part.get_input_embeddings(), nn.Embedding):
            ends[id(part.get_input_embeddings())] = part.get_input_embeddings()
    uses = Counter(id(part.weight) for part in ends.values())
    return layers + [part for part in ends.values() if uses[id(part.weight)] == 1 and id(part) not in within]


def _is_of_the_disk(failure: BaseException, trace: StackSummary) -> bool:
    """torch.save tells a full disk by one of several bare RuntimeErrors."""
    in_save = any(frame.filename == torch.serialization.__file__ for frame in trace)
    return isinstance(failure, OSError) or (isinstance(failure, RuntimeError) and in_save)


def _whole(p: DTensor, dtype: torch.dtype, topology: Topology) -> Tensor:
    """A sharded parameter in full on this rank's device, rounded before it is sent."""
    local = p.to_local().to(topology.device, dtype)
    sharded = DTensor.from_local(local, p.device_mesh, p.placements, shape=p.shape, stride=p.stride())
    return sharded.full_tensor()
