"""The language-model head as a module that is asked for a loss instead of logits."""

from typing import overload

import torch
from torch import Tensor, nn

from destruct.ops.dispatch import implementation
from destruct.ops.rows import LossOutput, PolicyLoss, ScoreOutput, ScoreRows, check_product


class FusedHead(nn.Module):
    """Takes the place of a model's `lm_head` and holds the same Parameter under the same name, `weight`.

    So tying, parameter names and checkpoints stay those of the model.  Every use of the weight lies inside `forward`,
    where sharded engines have gathered it; nothing of it is kept for the backward, which runs after they let it go.

        model.lm_head = FusedHead(model.lm_head.weight, "chunked")     # before the engine is made

    Args:
        weight: (V, H) the head's Parameter, tied or not.  Its shape is looked at in `forward` only: an engine may have
            partitioned it already.
        implementation_name: a key of `destruct.ops.dispatch.IMPLEMENTATIONS`.

    Raises:
        ValueError: the implementation is unknown.
    """

    def __init__(self, weight: nn.Parameter, implementation_name: str):
        super().__init__()
        self._implementation = implementation(implementation_name)
        self.weight = weight

    @overload
    def forward(self, hidden: Tensor, request: PolicyLoss) -> LossOutput: ...
    @overload
    def forward(self, hidden: Tensor, request: ScoreRows) -> ScoreOutput: ...
    @overload
    def forward(self, hidden: Tensor, request: None = None) -> Tensor: ...

    def forward(
        self, hidden: Tensor, request: PolicyLoss | ScoreRows | None = None
    ) -> LossOutput | ScoreOutput | Tensor:
        """Answer a request about N rows.

        Args:
            hidden: (N, H) last hidden states of the rows asked about; (..., H) where request is None.
            request: a loss, a score, or None for the plain logits (meant for the last position of a generation step).

        Returns:
            LossOutput, ScoreOutput, or logits (..., V) in the dtype of hidden.

        Raises:
            ValueError: hidden, weight and rows do not fit together, or a target is outside [0, V) (on the CPU).
        """
        if request is None:
            check_product(hidden, self.weight)
            return torch.matmul(hidden, self.weight.t())
        if isinstance(request, PolicyLoss):
            return self._implementation.policy_loss(hidden, self.weight, request.rows, request.coefficients)
        return self._implementation.score(hidden, self.weight, request)
