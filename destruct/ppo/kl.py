"""Per-token estimators of a KL divergence from one sampled token.

With tokens drawn from `p` and `log_ratio = log q - log p` of the drawn token, each estimates KL(p || q) in nats.

| estimator | formula     | as a value                   | as a loss (gradient through log p)            |
|-----------|-------------|------------------------------|-----------------------------------------------|
| k1        | -r          | unbiased, noisy, either sign | wrong: its gradient is 0 on average           |
| k2        | r^2 / 2     | biased, low variance, >= 0   | right on-policy: the gradient of KL(p || q)   |
| k3        | e^r - 1 - r | unbiased, low variance, >= 0 | another objective: the gradient of KL(q || p) |

So log k1 and k3, put k1 into the rewards, and prefer k2 in the loss; once the policy has left the one that sampled, k3
times the ratio pi/pi_old has the gradient of KL(p || q) again (-ratio r).  The policy is `p` and the reference `q` for
the penalty; the old policy is `p` and the new one `q` for the early stop.

Source: http://joschu.net/blog/kl-approx.html (values); arXiv:2510.01555 (gradients).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

LOG_RATIO_CLAMP = 20.0
"""Nats.  e^20 = 4.9e8 is still exact enough to add up in float32; beyond it estimators and ratios stay constant."""


def clamp_log_ratio(log_ratio: Tensor) -> Tensor:
    """Hold a log ratio (any shape, nats) inside [-20, 20]; outside, the gradient is 0."""
    return log_ratio.clamp(-LOG_RATIO_CLAMP, LOG_RATIO_CLAMP)


def k1(log_ratio: Tensor) -> Tensor:
    """-r, for r = log q - log p (any shape, nats) clamped to [-20, 20]; same shape, nats."""
    return -clamp_log_ratio(log_ratio)


def k2(log_ratio: Tensor) -> Tensor:
    """r^2 / 2, for r = log q - log p (any shape, nats) clamped to [-20, 20]; same shape, nats.  d/d log p = -r."""
    return clamp_log_ratio(log_ratio).square() / 2


def k3(log_ratio: Tensor) -> Tensor:
    """e^r - 1 - r, for r = log q - log p (any shape, nats) clamped to [-20, 20]; same shape.  d/d log p = 1 - e^r."""
    clamped = clamp_log_ratio(log_ratio)
    # expm1: e^r - 1 in float32 loses every digit of k3 = r^2 / 2 already at r = 3e-4, and can turn it negative.
    return torch.expm1(clamped) - clamped


def next_coef(coef: float, kl: float, bound: float, breach_factor: float) -> float:
    """beta of the next update: times `breach_factor` when `kl` (nats per token) is above `bound`; nan is above."""
    return coef if kl <= bound else coef * breach_factor


def controlled_coef(coef: float, kl: float, target: float, rollouts: int, horizon: int) -> float:
    """beta of the next update by a proportional controller: up where the KL lies above its target, down below it.

        e     = clip(KL / target - 1, -0.2, 0.2),    0.2 where KL is nan
        beta' = beta (1 + e rollouts / horizon)

    Args:
        coef: beta, reward units per nat, > 0.
        kl: nats per token, measured after the update.
        target: nats per token, > 0.
        rollouts: B of the update.
        horizon: rollouts, > 0.2 B, so that beta stays positive.

    Returns:
        Reward units per nat.

    Source: arXiv:1909.08593, section 2.2; its K_beta is rollouts / horizon.  KL and target are those of whole sequences
    there, and per token here.
    """
    relative = 1.0 if math.isnan(kl) else kl / target - 1
    return coef * (1 + max(-0.2, min(0.2, relative)) * rollouts / horizon)


ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}
"""By name."""

SLOPES: dict[str, Callable[[Tensor], Tensor]] = {
    "k1": torch.ones_like,
    "k2": torch.neg,
    "k3": lambda log_ratio: -torch.expm1(log_ratio),
}
"""d/d log p of each, at a log ratio inside the clamp."""
