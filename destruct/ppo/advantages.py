"""Advantages: from per-token rewards and values to what weighs the policy gradient.

Legend: B rollouts, R response tokens.
"""

import torch
from torch import Tensor

VARIANCE_FLOOR = 1e-8


def compute_gae(rewards: Tensor, old_values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Returns and generalized advantage estimates over response tokens.

        delta_t = r_t + gamma * V_{t+1} - V_t
        A_t     = delta_t + gamma * lam * A_{t+1},     A and V past the last token = 0

    Args:
        rewards: (B, R) reward units, KL penalty already subtracted.
        old_values: (B, R) reward units, V(s_t) before token t is sampled.
        mask:    (B, R) bool, True on sampled tokens, a prefix of each row.  At a False inside a row the next token is
                 the next True one: A and V are carried over it.
        gamma:   discount per token, in [0, 1].
        lam:     bias-variance dial, in [0, 1].

    Returns:
        returns, advantages: (B, R) each, float32 (float64 if rewards are), 0 where mask is False, not whitened;
        returns = advantages + old_values.

    Raises:
        ValueError: when the three shapes differ.

    Source: arXiv:1506.02438, eq. 16.
    """
    if not rewards.shape == old_values.shape == mask.shape or rewards.dim() != 2:
        shapes = [tuple(tensor.shape) for tensor in (rewards, old_values, mask)]
        raise ValueError(f"rewards, old_values and mask are {shapes}; expected one shape (B, R)")
    dtype = torch.float64 if rewards.dtype == torch.float64 else torch.float32
    rewards, old_values = rewards.to(dtype), old_values.to(dtype)
    advantages = torch.zeros_like(rewards)
    next_value = next_advantage = rewards.new_zeros(rewards.shape[0])
    for t in reversed(range(rewards.shape[1])):
        real, value = mask[:, t], old_values[:, t]
        delta = rewards[:, t] + gamma * next_value - value
        # where, not a product: padding may hold NaN.
        next_advantage = torch.where(real, delta + gamma * lam * next_advantage, next_advantage)
        next_value = torch.where(real, value, next_value)
        advantages[:, t] = torch.where(real, next_advantage, 0.0)
    return torch.where(mask, advantages + old_values, 0.0), advantages


def masked_moments(x: Tensor, mask: Tensor) -> Tensor:
    """Count, sum and sum of squares of the values under a mask, ready to be added up over ranks.

    Args:
        x: (...) any float dtype.
        mask: (...) bool, True on the values that count.

    Returns:
        (3,) float64: a float32 sum of squares over 1e6 tokens loses the variance of values far from 0.
    """
    values = torch.where(mask, x, 0.0).double()
    return torch.stack([mask.sum().double(), values.sum(), values.square().sum()])


def whiten(x: Tensor, mask: Tensor, moments: Tensor) -> Tensor:
    """Shift to mean 0 and scale to variance 1.

        (x - mu) * rsqrt(var + 1e-8),     var with n - 1, as TRL's

    Args:
        x: (...) any float dtype.
        mask: (...) bool, True on real tokens.
        moments: (3,) float64 of `masked_moments`, summed over all ranks (a rank without tokens adds zeros).

    Returns:
        (...) like x, 0 where mask is False; 0 everywhere when there are fewer than two values.
    """
    count, total, squares = moments.double().unbind()
    mean = total / count.clamp(min=1)
    # The difference is >= 0 but for rounding.
    variance = (squares - count * mean.square()).clamp(min=0) / (count - 1).clamp(min=1)
    whitened = (x.double() - mean) * torch.rsqrt(variance + VARIANCE_FLOOR)
    return torch.where(mask & (count > 1), whitened, 0.0).to(x.dtype)
