"""Row arithmetic on chunks of logits, in place, a few rows at a time.

A block of rows is worked on while it lies in the cache, in buffers that are allocated once per call: per element the
whole arithmetic then costs about as much as copying the logits once (docs/lab.md).
Legend: C rows of a chunk, r rows of a block, V vocabulary.
"""

import torch
from torch import Tensor

from destruct.ops.rows import LogitMap, row_dtype
from destruct.ops.terms import Slopes

BLOCK_BYTES = 4 * 2**20
"""Of one buffer of a block; three or four of them share the cache."""

LOWEST = -1e30
"""Stands for a shifted logit of -inf where it is multiplied by its probability, 0."""


class Softmax:
    """The next-token distributions that one model gives the rows of a chunk."""

    def __init__(self, chunk_rows: int, weight: Tensor, logit_map: LogitMap):
        vocab, self._dtype = weight.shape[0], row_dtype(weight.dtype)
        self.block_rows = max(1, min(chunk_rows, BLOCK_BYTES // (vocab * self._dtype.itemsize)))
        self._map = logit_map
        self.logits = weight.new_empty(chunk_rows, vocab)
        block = self.block_rows, vocab
        self._shifted, self._p, self._work = (weight.new_empty(block, dtype=self._dtype) for _ in range(3))
        self._slope = torch.empty_like(self._p) if logit_map.soft_cap is not None else None

    def multiply(self, hidden: Tensor, weight: Tensor, targets: Tensor) -> None:
        """Logits of a chunk: hidden (C, H), weight (V, H), targets (C,)."""
        self._hidden, self._weight, self._targets = hidden, weight, targets
        torch.mm(hidden, weight.t(), out=self.logits[: len(hidden)])

    def normalise(self, start: int, stop: int, temperature: Tensor) -> None:
        """Work out rows start to stop - 1 of the chunk, those that there are: the fields set here hold for them.

        Args:
            temperature: (r,) of the block.
        """
        scale, soft_cap, targets = self._map.scale, self._map.soft_cap, self._targets[start:stop, None]
        count, self._block_targets = len(targets), targets
        x = self.shifted = self._shifted[:count].copy_(self.logits[start : start + count])
        if self.logits.dtype != x.dtype:
            x.scatter_(1, targets, self._target_products(start, stop))
        if soft_cap is not None:
            x.mul_(scale / soft_cap).tanh_()
            self._keep_slope(x)
            x.mul_(soft_cap)
        elif scale != 1:
            x.mul_(scale)
        self.inverse_temperature = temperature[:count].to(x.dtype).reciprocal()
        largest = x.amax(1, keepdim=True)
        # Shift, then divide, then take the logarithm of the sum: a common offset of 1e4 then costs no digit.
        x.sub_(largest).mul_(self.inverse_temperature[:, None])
        of_target = x.gather(1, targets).squeeze(1)
        x.clamp_(min=LOWEST)
        self.p = torch.softmax(x, 1, out=self._p[:count])
        self.log_total = -self.p.amax(1).log()  # the largest p is 1 / total
        self.logprobs = of_target - self.log_total
        self.entropy = self.log_total - self._dot(self.p, x)
        self.log_sum_exp = largest.squeeze(1) * self.inverse_temperature + self.log_total

    def _target_products(self, start: int, stop: int) -> Tensor:
        """(r, 1) the targets' logits again, in float32.

        A product of bfloat16 is rounded to it, by up to 2^-9 of itself.  Of all logits the target's is what a logprob
        shows most of that.  The others' errors average out in the sum where many tokens share the probability, and
        stay where one has it (docs/lab.md).
        """
        hidden, heads = self._hidden[start:stop], self._weight[self._targets[start:stop]]
        return (hidden.to(self._dtype) * heads.to(self._dtype)).sum(1, keepdim=True)

    def _keep_slope(self, tanh: Tensor) -> None:
        assert self._slope is not None
        self.slope = torch.mul(tanh, tanh, out=self._slope[: len(tanh)]).neg_().add_(1)

    def divergence(self, reference: "Softmax", kl: str) -> Tensor:
        """Exact KL (r,) of a block, nats; 0 on rows beyond those that the reference has normalised.

        Leaves in `reference.shifted` the log odds log p - log q.
        """
        count = len(reference.p)
        log_totals = self.log_total[:count] - reference.log_total
        log_odds = torch.sub(self.shifted[:count], reference.shifted, out=reference.shifted).sub_(log_totals[:, None])
        divergence = torch.zeros_like(self.log_total)
        weight, sign = (self.p[:count], 1) if kl == "exact" else (reference.p, -1)
        divergence[:count] = sign * self._dot(weight, log_odds)
        return divergence

    def _dot(self, left: Tensor, right: Tensor) -> Tensor:
        """Row by row, (r,)."""
        return torch.mul(left, right, out=self._work[: len(left)]).sum(1)

    def forget(self, rows: Tensor) -> None:
        """Make nothing of the rows (r,) bool of a block."""
        for values in (self.shifted, self.p):
            values.masked_fill_(rows[: len(values), None], 0.0)

    def differentiate(self, slopes: Slopes, kl: str, exact_kl: Tensor, reference: "Softmax") -> Tensor:
        """Gradient of a block with respect to its products, (r, V) in the row dtype; overwrites all that is here.

            dz_j = u (1[j = y] - p_j) - e p_j (log p_j + E) + k p_j (log p_j - log q_j - KL) + l p_j

        with k (p_j - q_j) for the forward KL; z is at the row's temperature, from where it goes back through cap and
        scale.  u, e, k and l are the slopes in logprob, entropy, exact KL and log-sum-exp.

        Args:
            exact_kl: (r,) as `divergence` gave it; like kl and reference only read where there is a slope in it.
        """
        back = self.inverse_temperature * self._map.scale
        u, p, factor = slopes.logprob * back, self.p, self.shifted
        e, k, log_sum_exp = (None if slope is None else slope * back for slope in slopes[1:])
        constant = -u if log_sum_exp is None else log_sum_exp - u
        if e is not None:
            constant = constant - e * (self.entropy - self.log_total)
        if k is not None:
            read = k != 0  # whatever the reference's other rows hold: 0 * nan is nan
            constant = constant + (k if kl == "exact_forward" else torch.where(read, -k * exact_kl, 0.0))
            reference.forget(~read)
        if e is None and (k is None or kl == "exact_forward"):
            p.mul_(constant[:, None])
        else:
            factor.mul_(0.0 if e is None else -e[:, None])
            if k is not None and kl == "exact":
                odds = reference.shifted
                factor[: len(odds)].addcmul_(odds, k[: len(odds), None])
            p.mul_(factor.add_(constant[:, None]))
        if k is not None and kl == "exact_forward":
            q = reference.p
            p[: len(q)].addcmul_(q, k[: len(q), None], value=-1)
        # gather and scatter, one element a row: scatter_add_ has no deterministic promise on every device.
        targets = self._block_targets
        p.scatter_(1, targets, p.gather(1, targets) + u[:, None])
        return p if self._slope is None else p.mul_(self.slope)
