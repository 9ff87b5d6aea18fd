"""What the rest of destruct may ask of an engine, whichever backend runs it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn


class TrainEngine(Protocol):
    """One network with its optimizer.  All methods are called by all ranks, in the same order."""

    module: nn.Module
    accumulation: int  # micro-batches of a rank in one optimizer step

    def __call__(self, *args: Any) -> Any:
        """The module's own forward, through the backend's hooks.

        Args:
            args: of the policy (tokens, rows, request, positions), see `PolicyNetwork.forward`; of the value network
                (tokens, rows, positions), see `ValueNetwork.forward`.
        """

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of one micro-batch.

        Args:
            loss: scalar; sum over this micro-batch's tokens divided by the tokens of the whole minibatch on all
                ranks.  The sum over micro-batches and ranks of these losses is what is differentiated.
        """

    def grad_norm(self) -> float:
        """The accumulated gradient's norm over all ranks, before clipping; not finite where the gradient is not.

        Called after exactly `accumulation` backwards.  `step` or `drop_gradients` comes next.
        """

    def step(self, lr: float) -> None:
        """Clip by the norm that `grad_norm` has just told, step, clear."""

    def drop_gradients(self) -> None:
        """Forget what was accumulated; the weights and the optimizer stay as they are."""

    def fill(self, replica: nn.Module) -> None:
        """Copy the current weights into a hook-free module of the same parameter names."""

    def in_full(self, name: str) -> Tensor:
        """A parameter by its name, gathered; not to be written to."""

    def tensors_in_full(self) -> Iterator[tuple[str, Tensor]]:
        """Each parameter by name, gathered one at a time."""

    def states(self) -> Iterator[Tensor]:
        """What this rank holds of weights, master weights and moments; not to be written to."""

    def save(self, folder: Path, role: str) -> None:
        """Write weights, master weights and optimizer state below `folder/role`."""

    def load(self, folder: Path, role: str, written_by: int, scratch: Path) -> None:
        """Read what `save` wrote: bit for bit at the same number of ranks, with equal weights and moments at another.

        Args:
            written_by: ranks that wrote it.
            scratch: a folder that all ranks see; what is made there is not needed afterwards.

        Raises:
            DestructError: nothing that this backend can load is there.
        """


class InferenceEngine(Protocol):
    """One network without an optimizer.  All methods are called by all ranks, in the same order."""

    module: nn.Module

    def __call__(self, *args: Any) -> Any:
        """The module's own forward, through the backend's hooks; no gradient is kept.

        Args:
            args: of a frozen copy of the policy (tokens, rows, request, positions), see `PolicyNetwork.forward`; of
                the reward model (tokens, mask), see `RewardModel.forward`.
        """


class FrozenEngine(InferenceEngine, Protocol):
    """A frozen copy of the policy: the rolling one, or the initial one."""

    def refresh(self, policy: Any) -> None:
        """Take over the weights of `policy`, an engine of the same backend."""

    def states(self) -> Iterator[Tensor]:
        """What this rank holds of the weights; not to be written to."""

    def head(self) -> Tensor:
        """(V, H) the weight of its language-model head in full, on this rank's device; not to be written to."""

    def tensors_in_full(self) -> Iterator[tuple[str, Tensor]]:
        """Each parameter by name, gathered one at a time."""

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take over whole tensors by name, as `tensors_in_full` gave them."""
