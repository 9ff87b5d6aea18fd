"""Rows of the vocabulary-side losses: what every implementation takes and returns.

Legend: N rows, H hidden width, V vocabulary, K = len(SUM_NAMES).  A row is one position whose next token is scored; the
rows of all sequences of a micro-batch lie end to end, without padding.  Response rows carry the PPO terms, PTX rows the
cross-entropy on true continuations; a row with both weights 0 contributes nothing, whatever it holds.
"""

import math
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from destruct.ppo.kl import ESTIMATORS

KL_ESTIMATOR_NAMES = ("none", *ESTIMATORS)

SUM_NAMES = (
    "policy_loss",  # clipped surrogate, reward units
    "kl_old_k1",  # nats, sampled KL(old || policy)
    "kl_old_k3",
    "kl_reference_k1",  # nats, sampled KL(policy || reference)
    "kl_reference_k3",
    "clip_low",  # rows whose gradient the lower bound cut: A < 0 and ratio < 1 - clip_low
    "clip_high",  # rows whose gradient the upper bound cut: A > 0 and ratio > 1 + clip_high
    "clip_dual",  # rows whose gradient the dual clip cut: A < 0 and ratio > dual_clip
    "ratio",
    "entropy",  # nats
    "ptx_nll",  # nats, over the PTX rows
)

_MATRIX_DTYPES = (torch.bfloat16, torch.float32, torch.float64)
_ROW_DTYPES = (torch.float32, torch.float64)


@dataclass(frozen=True, slots=True)
class ScoreRows:
    """Tokens whose logprobs are asked for."""

    targets: Tensor  # (N,) int64    token ids in [0, V)
    temperature: Tensor  # (N,) float32  > 0, divides the logits of its row

    def __post_init__(self):
        _check_fields(self)

    def part(self, start: int, stop: int) -> "ScoreRows":
        """Rows start to stop - 1, as views."""
        return ScoreRows(**_sliced(self, start, stop))


@dataclass(frozen=True, slots=True)
class LossRows:
    """Rows of the loss, response rows and PTX rows mixed.  Constants: no gradient flows into any of these.

    float64 is accepted wherever float32 stands.  The weights carry the division by the number of rows of the WHOLE
    minibatch on all ranks, so that micro-batches, accumulation and world size do not change the gradient.
    """

    targets: Tensor  # (N,) int64    token ids in [0, V)
    temperature: Tensor  # (N,) float32  > 0, divides the logits of its row
    old_logprobs: Tensor  # (N,) float32  nats, under the policy that sampled; unread outside response rows
    reference_logprobs: Tensor  # (N,) float32  nats, under the reference; unread outside response rows
    advantages: Tensor  # (N,) float32  whitened reward units; unread outside response rows
    policy_weight: Tensor  # (N,) float32  1 / response rows of the minibatch; 0 on other rows
    ptx_weight: Tensor  # (N,) float32  ptx_coef / PTX rows of the minibatch; 0 on other rows

    def __post_init__(self):
        _check_fields(self)

    @property
    def response(self) -> Tensor:
        """(N,) bool, True on response rows."""
        return self.policy_weight != 0

    @property
    def ptx(self) -> Tensor:
        """(N,) bool, True on PTX rows."""
        return self.ptx_weight != 0

    @property
    def active(self) -> Tensor:
        """(N,) bool, True on rows that contribute to the loss."""
        return self.response | self.ptx

    def part(self, start: int, stop: int) -> "LossRows":
        """Rows start to stop - 1, as views."""
        return LossRows(**_sliced(self, start, stop))

    def score_rows(self) -> ScoreRows:
        """The same rows as `score` takes them."""
        return ScoreRows(self.targets, self.temperature)


@dataclass(frozen=True, slots=True)
class LossCoefficients:
    """Coefficients of the loss; all are finite, all but `entropy_coef` are >= 0."""

    clip_low: float  # the ratio is held above 1 - clip_low
    clip_high: float  # and below 1 + clip_high
    kl_coef: float  # reward units per nat of KL(policy || reference), paid in the loss
    kl_estimator: str  # one of KL_ESTIMATOR_NAMES; "none" leaves the KL to the rewards
    entropy_coef: float  # reward units per nat of entropy
    dual_clip: float | None = None  # > 1; where A < 0 the loss grows no further beyond this ratio; None: it grows on

    def __post_init__(self):
        for name in ("clip_low", "clip_high", "kl_coef", "entropy_coef"):
            value = getattr(self, name)
            if not math.isfinite(value) or (value < 0 and name != "entropy_coef"):
                raise ValueError(
                    f"LossCoefficients.{name} is {value}; expected a finite number, >= 0 unless entropy_coef"
                )
        if self.dual_clip is not None and not 1 < self.dual_clip < math.inf:
            raise ValueError(f"LossCoefficients.dual_clip is {self.dual_clip}; expected None or a finite number > 1")
        if self.kl_estimator not in KL_ESTIMATOR_NAMES:
            raise ValueError(
                f"LossCoefficients.kl_estimator is {self.kl_estimator!r}; expected one of {KL_ESTIMATOR_NAMES}"
            )


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """What the head is asked for in a training forward."""

    rows: LossRows
    coefficients: LossCoefficients


class LossOutput(NamedTuple):
    """Loss of N rows, with what is logged about them.  Only `loss` carries a gradient.

    `sums` are unweighted, so that ranks and micro-batches add up and the caller divides by its own counts.

    A named tuple: ZeRO-3's hooks find the tensors of a module's output in tuples, and not in dataclasses.
    """

    loss: Tensor  # () float32 (float64 for float64 inputs), reward units
    sums: Tensor  # (K,) float64  in the order of SUM_NAMES, over response rows; `ptx_nll` over PTX rows
    extremes: Tensor  # (2,) like loss  largest ratio, largest |log ratio| before its clamp; 0, 0 without response rows
    logprobs: Tensor  # (N,) like loss  nats, as `score` gives them, on every row


class ScoreOutput(NamedTuple):
    """What the model says about N tokens, without gradient."""

    logprobs: Tensor  # (N,) float32 (float64 for float64 inputs), nats
    entropy: Tensor  # (N,) like logprobs, nats, of the whole distribution at the row's temperature


def row_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of the row arithmetic for hidden states and weights of `dtype`: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_inputs(hidden: Tensor, weight: Tensor, targets: Tensor) -> None:
    """Refuse what an implementation cannot take.

    Args:
        hidden: (N, H) bfloat16, float32 or float64.
        weight: (V, H) of the same dtype.
        targets: (N,) int64 in [0, V); the range is looked at on the CPU only, elsewhere that would wait for the device.

    Raises:
        ValueError: naming the argument and its values.
    """
    check_product(hidden, weight)
    if hidden.dim() != 2 or hidden.shape[0] != targets.shape[0]:
        raise ValueError(
            f"hidden is {tuple(hidden.shape)}; targets is {tuple(targets.shape)}, so expected ({len(targets)}, H)"
        )
    if hidden.dtype not in _MATRIX_DTYPES:
        # float16 would need the loss scale folded in before the logit gradients (about 1 / (N V)) are rounded to it.
        raise ValueError(f"hidden is {hidden.dtype}; expected one of {_MATRIX_DTYPES}")
    if targets.device.type != "cpu" or targets.numel() == 0:
        return
    low, high = (int(bound) for bound in targets.aminmax())
    if low < 0 or high >= weight.shape[0]:
        raise ValueError(
            f"targets lie in [{low}, {high}]; weight has {weight.shape[0]} rows, so expected [0, {weight.shape[0]})"
        )


def check_product(hidden: Tensor, weight: Tensor) -> None:
    """Refuse hidden states (..., H) and a weight (V, H) that do not multiply, by a ValueError with both."""
    if weight.dim() != 2 or hidden.dim() < 1 or hidden.shape[-1] != weight.shape[-1]:
        raise ValueError(
            f"hidden is {tuple(hidden.shape)}, weight is {tuple(weight.shape)}; expected (..., H) and (V, H)"
        )
    if hidden.dtype != weight.dtype:
        raise ValueError(f"hidden is {hidden.dtype}, weight is {weight.dtype}; expected one dtype")


def _check_fields(rows: ScoreRows | LossRows) -> None:
    owner, targets = type(rows).__name__, rows.targets
    if targets.dim() != 1 or targets.dtype != torch.int64:
        raise ValueError(f"{owner}.targets is {tuple(targets.shape)} {targets.dtype}; expected (N,) torch.int64")
    for field in fields(rows)[1:]:
        tensor = getattr(rows, field.name)
        _check_same_shape(rows, field.name, tensor, "targets", targets)
        if tensor.dtype not in _ROW_DTYPES:
            raise ValueError(f"{owner}.{field.name} is {tensor.dtype}; expected one of {_ROW_DTYPES}")


def _check_same_shape(owner: object, name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if tensor.shape != other.shape:
        got, want = tuple(tensor.shape), tuple(other.shape)
        raise ValueError(f"{type(owner).__name__}.{name} is {got}; {other_name} is {want}")


def _sliced(rows: ScoreRows | LossRows, start: int, stop: int) -> dict[str, Tensor]:
    return {field.name: getattr(rows, field.name)[start:stop] for field in fields(rows)}
