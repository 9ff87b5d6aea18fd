"""Clipped PPO losses, per token: who calls them weights and sums."""

import torch
from torch import Tensor

from destruct.ppo.kl import clamp_log_ratio


def clipped_policy_loss(log_ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """Clipped surrogate loss of each token, to be minimised.

        rho = exp(log_ratio),  log_ratio held inside [-20, 20]
        L   = max(-A rho, -A clip(rho, 1 - clip_low, 1 + clip_high))

    Args:
        log_ratio: (...) nats, log pi(a|s) - log pi_old(a|s).
        advantages: (...) same shape and dtype, whitened.
        clip_low, clip_high: distances below and above 1 at which the ratio stops paying; >= 0.

    Returns:
        (...) same dtype.

    Source: arXiv:1707.06347, eq. 7 (negated); two distances instead of one: arXiv:2503.14476, section 3.1.
    """
    ratio = clamp_log_ratio(log_ratio).exp()
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip_low, 1 + clip_high))


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float) -> Tensor:
    """Clipped squared error of each token's value, to be minimised.

        V_clip = V_old + clip(V - V_old, -clip_range, clip_range)
        L      = 1/2 max((V - R)^2, (V_clip - R)^2)

    Args:
        values: (...) reward units, of the value network being trained.
        old_values: (...) reward units, of the value network at scoring time.
        returns: (...) reward units.
        clip_range: reward units, > 0; the largest step away from V_old that still pays.

    Returns:
        (...) squared reward units.

    Source: openai/baselines, ppo2/model.py.  arXiv:2005.12729, section 3, prints a min; the code it describes has max.
    """
    clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
    return torch.maximum((values - returns).square(), (clipped - returns).square()) / 2
