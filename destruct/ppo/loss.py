"""Clipped PPO losses, per token: who calls them weights and sums."""

import torch
from torch import Tensor

from destruct.ppo.kl import clamp_log_ratio


def clipped_policy_loss(
    log_ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float, dual_clip: float | None = None
) -> Tensor:
    """Clipped surrogate loss of each token, to be minimised.

        rho = exp(log_ratio),  log_ratio held inside [-20, 20]
        L   = max(-A rho, -A clip(rho, 1 - clip_low, 1 + clip_high))
        L   = min(L, -A dual_clip)    where A < 0, if dual_clip is given

    Args:
        log_ratio: (...) nats, log pi(a|s) - log pi_old(a|s).
        advantages: (...) same shape and dtype, whitened.
        clip_low, clip_high: distances below and above 1 at which the ratio stops paying; >= 0.
        dual_clip: ratio, > 1, from which on a token with A < 0 costs no more and has no gradient.  Without it that loss
            has no bound: a token that was improbable when it was sampled can outweigh all others.

    Returns:
        (...) same dtype.

    Source: arXiv:1707.06347, eq. 7 (negated); two distances instead of one: arXiv:2503.14476, section 3.1; the dual
    clip: arXiv:1912.09729, eq. 5 (negated).
    """
    ratio = clamp_log_ratio(log_ratio).exp()
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip_low, 1 + clip_high))
    if dual_clip is None:
        return loss
    # For A < 0 and dual_clip > 1 the smaller one is the bound exactly where rho > dual_clip, wherever clip_high lies.
    return torch.where((advantages < 0) & (ratio > dual_clip), -advantages * dual_clip, loss)


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
