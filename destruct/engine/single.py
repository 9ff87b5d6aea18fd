"""Plain torch in one process, float32 master weights: laptop, debugger, and the yardstick of the other backends."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from destruct.config.deepspeed import Optimizer
from destruct.engine.adam import adam_states
from destruct.errors import DestructError
from destruct.heartbeat import HEART

PART = 2**20
"""Elements of a gradient that are cast at a time, in memory that stays in the cache."""


class SingleEngine:
    """A network and its Adam.  Gradients accumulate in float32 whatever the network's dtype.

    Where they are not the network's own, they do so in memory that is taken once: a first touch of new memory costs six
    times what the cast does (docs/lab.md).
    """

    def __init__(self, module: nn.Module, optimizer: Optimizer, accumulation: int, max_grad_norm: float):
        self.module = module
        self.accumulation = accumulation
        self.max_grad_norm = max_grad_norm
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.masters = [p if p.dtype == torch.float32 else p.detach().float() for p in self.parameters]
        self._totals: dict[nn.Parameter, Tensor] = {}
        if any(master is not p for p, master in zip(self.parameters, self.masters, strict=True)):
            _touch_looked_up_rows_alone(module)
        arguments = optimizer.params.model_dump(exclude={"lr", "torch_adam"})
        # DeepSpeed's "Adam" decouples weight decay too (adam_w_mode is its default), so both names are AdamW.
        self.optimizer = torch.optim.AdamW(self.masters, lr=0.0, fused=True, **arguments)

    def __call__(self, *args: Any) -> Any:
        HEART.beat()
        return self.module(*args)

    def backward(self, loss: Tensor) -> None:
        HEART.beat()
        loss.backward()
        for p, master in zip(self.parameters, self.masters, strict=True):
            if master is p or p.grad is None:
                continue
            if p not in self._totals:
                self._totals[p] = torch.empty_like(master, memory_format=torch.contiguous_format)
            total, is_first = self._totals[p], master.grad is None
            if p.grad.is_sparse:
                total = total.zero_() if is_first else total
                total.index_add_(0, p.grad._indices()[0], p.grad._values().float())
            elif is_first:
                total.copy_(p.grad)
            else:
                for part, more in zip(total.view(-1).split(PART), p.grad.reshape(-1).split(PART), strict=True):
                    part.add_(more.float())
            master.grad, p.grad = total, None

    def grad_norm(self) -> float:
        gradients = [master.grad for master in self.masters if master.grad is not None]
        self._norm = nn.utils.get_total_norm(gradients)
        return float(self._norm)

    def step(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        nn.utils.clip_grads_with_norm_(self.masters, self.max_grad_norm, self._norm)
        self.optimizer.step()
        self.drop_gradients()
        self._publish()

    def drop_gradients(self) -> None:
        self.optimizer.zero_grad()

    @torch.no_grad()
    def _publish(self) -> None:
        for p, master in zip(self.parameters, self.masters, strict=True):
            if master is not p:
                p.copy_(master)

    @torch.no_grad()
    def fill(self, replica: nn.Module) -> None:
        if replica is not self.module:
            replica.load_state_dict(self.module.state_dict())

    def in_full(self, name: str) -> Tensor:
        return self.module.get_parameter(name).detach()

    def tensors_in_full(self) -> Iterator[tuple[str, Tensor]]:
        for name, p in self.module.named_parameters():
            yield name, p.detach()

    def states(self) -> Iterator[Tensor]:
        yield from self.parameters
        yield from adam_states(self.optimizer)

    def save(self, folder: Path, role: str) -> None:
        (folder / role).mkdir(parents=True)
        masters = [master.detach() for master in self.masters]
        torch.save({"masters": masters, "optimizer": self.optimizer.state_dict()}, folder / role / "state.pt")

    def load(self, folder: Path, role: str, written_by: int = 1, scratch: Path | None = None) -> None:
        path = folder / role / "state.pt"
        if not path.is_file():
            raise DestructError(f"{path} does not exist", "resume with the engine.backend that wrote the checkpoint")
        state = torch.load(path, weights_only=True)
        with torch.no_grad():
            for master, saved in zip(self.masters, state["masters"], strict=True):
                master.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.drop_gradients()
        self._publish()


class SingleFrozen:
    """Inference alone, a plain module."""

    def __init__(self, module: nn.Module):
        self.module: Any = module.requires_grad_(False).eval()

    @torch.no_grad()
    def __call__(self, *args: Any) -> Any:
        HEART.beat()
        return self.module(*args)

    def refresh(self, policy: SingleEngine) -> None:
        self.load_tensors(dict(policy.tensors_in_full()))

    def states(self) -> Iterator[Tensor]:
        yield from self.module.parameters()

    def head(self) -> Tensor:
        return self.module.head.weight.detach()

    def tensors_in_full(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.module.named_parameters()

    @torch.no_grad()
    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        for name, q in self.module.named_parameters():
            q.copy_(tensors[name])


def _touch_looked_up_rows_alone(network: nn.Module) -> None:
    """Let embeddings that are no head besides have gradients of the rows that were looked up, and not of all V.

    On a CPU: a GPU adds such rows in no fixed order.
    """
    uses = Counter(id(p) for part in network.modules() for p in part.parameters(recurse=False))
    for part in network.modules():
        if isinstance(part, nn.Embedding) and uses[id(part.weight)] == 1:
            part.sparse = part.weight.device.type == "cpu"
