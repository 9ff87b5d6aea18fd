"""Running sums over the vocabulary: whatever columns they were taken over, two of them merge into those of both.

So blocks of a kernel, splits of the vocabulary over its programs, and shards of a head that is split over ranks give
one result by one operation, which is associative and commutative.  Each sum is shifted by the largest logit seen, so
that neither a common offset of 1e4 nor a spread of 1e4 costs a digit.

Legend: N rows; z the policy's logits and m their maximum, y the reference's and n theirs.
"""

from collections.abc import Iterable
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from destruct.ops.rows import ScoreOutput


class LogitSums(NamedTuple):
    """Sums over some columns of one model's logits; each (N,), float32 or float64."""

    largest: Tensor  # m, -inf where there are no columns yet
    total: Tensor  # sum of e^(z - m)
    weighted: Tensor  # sum of e^(z - m) (z - m), <= 0
    target: Tensor  # logit of the row's target where it is among the columns, else -inf

    def merge(self, other: "LogitSums") -> "LogitSums":
        """Sums over the columns of both, which share none."""
        largest = torch.maximum(self.largest, other.largest)
        (total, weighted), (other_total, other_weighted) = self._shifted(largest), other._shifted(largest)
        target = torch.maximum(self.target, other.target)
        return LogitSums(largest, total + other_total, weighted + other_weighted, target)

    def over_parts(self) -> "LogitSums":
        """Sums over the columns of all parts (parts, N), which share none."""
        largest = self.largest.amax(0)
        total, weighted = self._shifted(largest)
        return LogitSums(largest, total.sum(0), weighted.sum(0), self.target.amax(0))

    def scores(self) -> ScoreOutput:
        """What the sums over a whole vocabulary say: logprob of the target, entropy and log-sum-exp, nats."""
        log_total = self.total.log()
        # Shift, then take the logarithm of the sum.
        return ScoreOutput(
            (self.target - self.largest) - log_total, log_total - self.weighted / self.total, self.largest + log_total
        )

    def _shifted(self, largest: Tensor) -> tuple[Tensor, Tensor]:
        shift = _shift(self.largest, largest)
        return self.total * shift.exp(), (self.weighted + shift * self.total) * shift.exp()


class PairSums(NamedTuple):
    """Sums over some columns of two models' logits, enough for their KL both ways; each sum (N,)."""

    policy: LogitSums
    reference: LogitSums
    cross: Tensor  # sum of e^(z - m) (y - n)
    reference_cross: Tensor  # sum of e^(y - n) (z - m)

    def merge(self, other: "PairSums") -> "PairSums":
        """Sums over the columns of both, which share none."""
        policy, reference = self.policy.merge(other.policy), self.reference.merge(other.reference)
        mine, theirs = self._shifted(policy, reference), other._shifted(policy, reference)
        return PairSums(policy, reference, mine[0] + theirs[0], mine[1] + theirs[1])

    def exact_kl(self) -> Tensor:
        """KL(policy || reference) (N,) nats."""
        return _divergence(self.policy, self.reference, self.cross)

    def exact_forward_kl(self) -> Tensor:
        """KL(reference || policy) (N,) nats."""
        return _divergence(self.reference, self.policy, self.reference_cross)

    def _shifted(self, policy: LogitSums, reference: LogitSums) -> tuple[Tensor, Tensor]:
        shift = _shift(self.policy.largest, policy.largest)
        reference_shift = _shift(self.reference.largest, reference.largest)
        cross = (self.cross + reference_shift * self.policy.total) * shift.exp()
        return cross, (self.reference_cross + shift * self.reference.total) * reference_shift.exp()


def sums_of(logits: Tensor, targets: Tensor, first: int = 0) -> LogitSums:
    """Sums over columns `first`, `first` + 1, ... of the vocabulary.

    Args:
        logits: (N, columns) float32 or float64, at the row's temperature; at least one column.
        targets: (N,) int64 ids in the whole vocabulary.
    """
    largest = logits.amax(1)
    shifted = _shifted(logits, largest)
    powers = shifted.exp()
    place = targets - first
    inside = (place >= 0) & (place < logits.shape[1])
    at = logits.gather(1, place.clamp(0, logits.shape[1] - 1)[:, None]).squeeze(1)
    target = torch.where(inside, at, -torch.inf)
    return LogitSums(largest, powers.sum(1), (powers * shifted).sum(1), target)


def pair_sums_of(logits: Tensor, reference_logits: Tensor, targets: Tensor, first: int = 0) -> PairSums:
    """As `sums_of`, of two models' logits (N, columns) of the same columns."""
    policy, reference = sums_of(logits, targets, first), sums_of(reference_logits, targets, first)
    z, y = _shifted(logits, policy.largest), _shifted(reference_logits, reference.largest)
    return PairSums(policy, reference, (z.exp() * y).sum(1), (y.exp() * z).sum(1))


def merged(parts: Iterable[LogitSums]) -> LogitSums:
    """Sums over the columns of all parts, of which there is at least one."""
    return reduce(LogitSums.merge, parts)


def _shift(largest: Tensor, new: Tensor) -> Tensor:
    """largest - new, <= 0; no columns yet have nothing to shift, and -inf times their 0 would be nan."""
    return torch.where(torch.isneginf(largest), 0.0, largest - new)


def _shifted(logits: Tensor, largest: Tensor) -> Tensor:
    """logits - largest; -inf becomes -1e30: times its probability, 0, it is 0 and not nan."""
    return (logits - torch.where(torch.isneginf(largest), 0.0, largest)[:, None]).clamp(min=-1e30)


def _divergence(p: LogitSums, q: LogitSums, cross: Tensor) -> Tensor:
    """sum_j p_j (log p_j - log q_j)."""
    return (p.weighted - cross) / p.total - p.total.log() + q.total.log()
