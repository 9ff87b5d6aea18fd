"""The fused ops as autograd sees them, over any implementation's walk through the rows.

Legend: N rows, H hidden width, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from destruct.ops.gradients import Gradients
from destruct.ops.precision import own_precision
from destruct.ops.rows import (
    LogitMap,
    LossCoefficients,
    LossOutput,
    LossRows,
    ReferenceStates,
    ScoreOutput,
    ScoreRows,
)
from destruct.ops.terms import Slopes, combine, loss_slopes


class Said(NamedTuple):
    """What the vocabulary says about each row; each (N,) in the row dtype, nats."""

    logprobs: Tensor
    entropy: Tensor
    log_sum_exp: Tensor
    exact_kl: Tensor  # 0 without a reference


@dataclass(frozen=True, slots=True)
class LossSlopes:
    """The loss is differentiated: its derivatives follow from a row's own logprob."""

    rows: LossRows
    coefficients: LossCoefficients

    @property
    def kl(self) -> str:
        """One of KL_NAMES."""
        return self.coefficients.kl

    def at(self, logprobs: Tensor, start: int, stop: int) -> Slopes:
        """Of rows start to stop - 1, whose logprobs are (stop - start,)."""
        return loss_slopes(logprobs, self.rows.part(start, stop), self.coefficients)


@dataclass(frozen=True, slots=True)
class GivenSlopes:
    """Scores are differentiated: their derivatives come from whatever was made of them; each (N,)."""

    logprob: Tensor
    entropy: Tensor
    log_sum_exp: Tensor

    @property
    def kl(self) -> str:
        """Scores have none."""
        return "none"

    def at(self, logprobs: Tensor, start: int, stop: int) -> Slopes:
        """Of rows start to stop - 1."""
        logprob, entropy, log_sum_exp = (slope[start:stop] for slope in (self.logprob, self.entropy, self.log_sum_exp))
        return Slopes(logprob, entropy, log_sum_exp=log_sum_exp)


Walk = Callable[..., Said]
"""Goes through the rows once: (hidden, weight, rows: ScoreRows, logit_map, chunk_rows, slopes=None, reference=None,
gradients=None) -> Said.  With `gradients` it adds those of hidden and weight up in there."""


def policy_loss(
    walk: Walk,
    hidden: Tensor,
    weight: Tensor,
    rows: LossRows,
    coefficients: LossCoefficients,
    reference: ReferenceStates | None,
    logit_map: LogitMap,
    chunk_rows: int,
) -> LossOutput:
    """The loss with its gradients made in the forward, where they are asked for at all."""
    arguments = walk, LossSlopes(rows, coefficients), reference, logit_map, chunk_rows
    # Asked here: inside a Function's forward gradients are always off, and needs_input_grad does not heed no_grad.
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        return LossOutput(*_PolicyLoss.apply(hidden, weight, *arguments))
    with torch.no_grad():
        return _evaluate(hidden, weight, *arguments)


def score(
    walk: Walk, hidden: Tensor, weight: Tensor, rows: ScoreRows, logit_map: LogitMap, chunk_rows: int
) -> ScoreOutput:
    """Scores whose backward multiplies again."""
    return ScoreOutput(*_Score.apply(hidden, weight, walk, rows, logit_map, chunk_rows))


class _PolicyLoss(torch.autograd.Function):
    """The backward only scales."""

    @staticmethod
    def forward(ctx, hidden, weight, walk, slopes, reference, logit_map, chunk_rows):
        gradients = Gradients(hidden, weight, chunk_rows, *ctx.needs_input_grad[:2])
        out = _evaluate(hidden, weight, walk, slopes, reference, logit_map, chunk_rows, gradients)
        # Gradients alone: a kept weight would be empty, or stale, once an engine has partitioned it again.
        ctx.save_for_backward(*gradients.finished())
        ctx.mark_non_differentiable(out.sums, out.extremes, out.logprobs)
        return tuple(out)

    @staticmethod
    @once_differentiable
    def backward(ctx, *output_gradients):
        return (*(None if g is None else scaled(g, output_gradients[0]) for g in ctx.saved_tensors), *[None] * 5)


def scaled(gradient: Tensor, scale: Tensor) -> Tensor:
    """Their product, for a backward: in the gradient's own memory where no other backward of this graph can follow."""
    if torch._C._autograd._get_current_graph_task_keep_graph():
        return gradient * scale
    # Any other device would have to be waited for.
    is_one = scale.device.type == "cpu" and bool(scale == 1)
    return gradient if is_one else gradient.mul_(scale)


class _Score(torch.autograd.Function):
    """The backward multiplies again."""

    @staticmethod
    def forward(ctx, hidden, weight, walk, *arguments):
        said = walk(hidden, weight, *arguments)
        # The inputs themselves and no view of them: engines put the gathered weight back into this very tensor.
        ctx.save_for_backward(hidden, weight)
        ctx.arguments = walk, arguments
        return said.logprobs, said.entropy, said.log_sum_exp

    @staticmethod
    @once_differentiable
    def backward(ctx, *output_gradients):
        (hidden, weight), (walk, arguments) = ctx.saved_tensors, ctx.arguments
        *_, chunk_rows = arguments
        gradients = Gradients(hidden, weight, chunk_rows, *ctx.needs_input_grad[:2])
        own_precision(walk)(hidden, weight, *arguments, GivenSlopes(*output_gradients), gradients=gradients)
        return *gradients.finished(), None, None, None, None


def _evaluate(
    hidden: Tensor,
    weight: Tensor,
    walk: Walk,
    slopes: LossSlopes,
    reference: ReferenceStates | None,
    logit_map: LogitMap,
    chunk_rows: int,
    gradients: Gradients | None = None,
) -> LossOutput:
    said = walk(
        hidden,
        weight,
        slopes.rows.score_rows(),
        logit_map,
        chunk_rows,
        slopes,
        reference=reference,
        gradients=gradients,
    )
    figures = combine(said.logprobs, said.entropy, said.exact_kl, slopes.rows, slopes.coefficients)
    return LossOutput(*figures, said.logprobs)
