"""The language-model head as a module that is asked for a loss instead of logits."""

from typing import overload

import torch
from torch import Tensor, nn

from destruct.ops.checks import check_product
from destruct.ops.dispatch import implementation
from destruct.ops.rows import (
    PRODUCTS,
    KeepStates,
    LogitMap,
    LossOutput,
    PolicyLoss,
    ScoreOutput,
    ScoreRows,
    StatesOutput,
)

HeadRequest = PolicyLoss | ScoreRows | KeepStates
HeadOutput = LossOutput | ScoreOutput | StatesOutput | Tensor


class FusedHead(nn.Module):
    """Takes the place of a model's `lm_head` and holds the same Parameter under the same name, `weight`.

    So tying, parameter names and checkpoints stay those of the model.  Every use of the weight lies inside `forward`,
    where sharded engines have gathered it; nothing of it is kept for the backward, which runs after they let it go, but
    by scores that are differentiated, which keep the Parameter itself.

        model.lm_head = FusedHead(model.lm_head.weight, "chunked")     # before the engine is made

    Args:
        weight: (V, H) the head's Parameter, tied or not.  Its shape is looked at in `forward` only: an engine may have
            partitioned it already.
        implementation_name: a key of `destruct.ops.dispatch.IMPLEMENTATIONS`.
        logit_map: what the model does to its products before they are logits.
        chunk_rows: rows of a chunk; the implementation's own choice by shape and dtype when None.

    Raises:
        ValueError: the implementation is unknown.
    """

    def __init__(
        self,
        weight: nn.Parameter,
        implementation_name: str,
        logit_map: LogitMap = PRODUCTS,
        chunk_rows: int | None = None,
    ):
        super().__init__()
        self._implementation = implementation(implementation_name)
        self.logit_map, self.chunk_rows = logit_map, chunk_rows
        self.weight = weight

    @overload
    def forward(self, hidden: Tensor, request: PolicyLoss) -> LossOutput: ...
    @overload
    def forward(self, hidden: Tensor, request: ScoreRows) -> ScoreOutput: ...
    @overload
    def forward(self, hidden: Tensor, request: KeepStates) -> StatesOutput: ...
    @overload
    def forward(self, hidden: Tensor, request: None = None) -> Tensor: ...

    def forward(self, hidden: Tensor, request: HeadRequest | None = None) -> HeadOutput:
        """Answer a request about N rows.

        Args:
            hidden: (N, H) last hidden states of the rows asked about; (..., H) where request is None.
            request: a loss, scores, scores with the states, or None for the products themselves, from which the model's
                own forward goes on to its logits (see `logits`).

        Returns:
            LossOutput, ScoreOutput, StatesOutput, or products (..., V) in the dtype of hidden.

        Raises:
            ValueError: hidden, weight and rows do not fit together, or a target is outside [0, V) (on the CPU).
        """
        if request is None:
            check_product(hidden, self.weight)
            return torch.matmul(hidden, self.weight.t())
        how = self.logit_map, self.chunk_rows
        if isinstance(request, PolicyLoss):
            what = request.rows, request.coefficients, request.reference
            return self._implementation.policy_loss(hidden, self.weight, *what, *how)
        if isinstance(request, KeepStates):
            return StatesOutput(self._implementation.score(hidden, self.weight, request.rows, *how), hidden)
        return self._implementation.score(hidden, self.weight, request, *how)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., V) in the dtype of hidden (..., H), which is meant to be the last position of a generation step."""
        products, (scale, cap) = self(hidden), (self.logit_map.scale, self.logit_map.soft_cap)
        logits = products if scale == 1 else products * scale
        return logits if cap is None else (logits / cap).tanh() * cap
