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

EXACT_KL_NAMES = ("exact", "exact_forward")
"""KL(policy || reference) and KL(reference || policy), summed over the whole vocabulary."""

KL_NAMES = ("none", *ESTIMATORS, "k3_weighted", *EXACT_KL_NAMES)

SUM_NAMES = (
    "policy_loss",  # clipped surrogate, reward units
    "kl_old_k1",  # nats, sampled KL(old || policy)
    "kl_old_k3",
    "kl_reference_k1",  # nats, sampled KL(policy || reference)
    "kl_reference_k3",
    "kl_reference_exact",  # nats, over the vocabulary, in the direction of the loss; 0 where the loss does not ask
    "clip_low",  # rows whose gradient the lower bound cut: A < 0 and ratio < 1 - clip_low
    "clip_high",  # rows whose gradient the upper bound cut: A > 0 and ratio > 1 + clip_high
    "clip_dual",  # rows whose gradient the dual clip cut: A < 0 and ratio > dual_clip
    "ratio",
    "entropy",  # nats
    "ptx_nll",  # nats, over the PTX rows
)

_ROW_DTYPES = (torch.float32, torch.float64)


@dataclass(frozen=True, slots=True)
class ScoreRows:
    """Tokens whose logprobs are asked for."""

    targets: Tensor  # (N,) int64    token ids in [0, V)
    temperature: Tensor  # (N,) float32  > 0, divides the logits of its row
    as_trained: bool = False  # bit for bit as `policy_loss` gives them; other products may be faster

    def __post_init__(self):
        _check_fields(self)


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
        return LossRows(**{field.name: getattr(self, field.name)[start:stop] for field in fields(self)})

    def score_rows(self) -> ScoreRows:
        """The same rows as `score` takes them, to be scored as they are trained."""
        return ScoreRows(self.targets, self.temperature, as_trained=True)


@dataclass(frozen=True, slots=True)
class LossCoefficients:
    """Coefficients of the loss; all are finite, all but `entropy_coef` are >= 0."""

    clip_low: float  # the ratio is held above 1 - clip_low
    clip_high: float  # and below 1 + clip_high
    kl_coef: float  # reward units per nat of KL(policy || reference), paid in the loss
    kl: str  # which KL that is, one of KL_NAMES; "none" leaves it to the rewards
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
        if self.kl not in KL_NAMES:
            raise ValueError(f"LossCoefficients.kl is {self.kl!r}; expected one of {KL_NAMES}")

    @property
    def exact_kl(self) -> bool:
        """Whether the loss reads the reference's hidden states and head."""
        return self.kl in EXACT_KL_NAMES


@dataclass(frozen=True, slots=True)
class ReferenceStates:
    """The reference as the exact KL reads it: neither its logits nor its probabilities are ever kept."""

    hidden: Tensor  # (n, H') last hidden states of the first n <= N rows, all response rows among them
    weight: Tensor  # (V, H') its head, same dtype


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """What the head is asked for in a training forward."""

    rows: LossRows
    coefficients: LossCoefficients
    reference: ReferenceStates | None = None  # where the coefficients ask for the exact KL


@dataclass(frozen=True, slots=True)
class KeepStates:
    """Scores, and the hidden states that they come from: what a `ReferenceStates` is made of."""

    rows: ScoreRows


@dataclass(frozen=True, slots=True)
class LogitMap:
    """From products to logits, before the temperature: x -> cap tanh(scale x / cap), or scale x without a cap.

    Gemma 2 has soft_cap 30 (`final_logit_softcapping`), Cohere and Granite a scale (`logit_scale` and
    1 / `logits_scaling`).
    """

    scale: float = 1.0
    soft_cap: float | None = None  # > 0

    def __post_init__(self):
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"LogitMap.scale is {self.scale}; expected a finite number > 0")
        if self.soft_cap is not None and not 0 < self.soft_cap < math.inf:
            raise ValueError(f"LogitMap.soft_cap is {self.soft_cap}; expected None or a finite number > 0")


PRODUCTS = LogitMap()
"""Logits that are the products themselves."""


class LossOutput(NamedTuple):
    """Loss of N rows, with what is logged about them.  Only `loss` carries a gradient.

    `sums` are unweighted, so that ranks and micro-batches add up and the caller divides by its own counts.

    A named tuple: ZeRO-3's hooks find the tensors of a module's output in tuples, and not in dataclasses.
    """

    loss: Tensor  # () float32 (float64 for float64 inputs), reward units
    sums: Tensor  # (K,) float64  in the order of SUM_NAMES, over response rows; `ptx_nll` over PTX rows
    extremes: Tensor  # (2,) like loss  largest log ratio and largest -log ratio, unclamped; -inf without response rows
    logprobs: Tensor  # (N,) like loss  nats, as `score` gives them, on every row


class ScoreOutput(NamedTuple):
    """What the model says about N tokens; each (N,) float32 (float64 for float64 inputs), nats."""

    logprobs: Tensor
    entropy: Tensor  # of the whole distribution at the row's temperature
    log_sum_exp: Tensor  # of the logits at the row's temperature


class StatesOutput(NamedTuple):
    """The answer to `KeepStates`."""

    scores: ScoreOutput
    hidden: Tensor  # (N, H) as the head got them


def row_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of the row arithmetic for hidden states and weights of `dtype`: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _check_fields(rows: ScoreRows | LossRows) -> None:
    owner, targets = type(rows).__name__, rows.targets
    if targets.dim() != 1 or targets.dtype != torch.int64:
        raise ValueError(f"{owner}.targets is {tuple(targets.shape)} {targets.dtype}; expected (N,) torch.int64")
    for field in fields(rows)[1:]:
        tensor = getattr(rows, field.name)
        if not isinstance(tensor, Tensor):
            continue
        if tensor.shape != targets.shape:
            raise ValueError(f"{owner}.{field.name} is {tuple(tensor.shape)}; targets is {tuple(targets.shape)}")
        if tensor.dtype not in _ROW_DTYPES:
            raise ValueError(f"{owner}.{field.name} is {tensor.dtype}; expected one of {_ROW_DTYPES}")
        if tensor.device != targets.device:
            raise ValueError(f"{owner}.{field.name} is on {tensor.device}; targets is on {targets.device}")
