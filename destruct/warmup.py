"""Before PPO: a model from scratch learns to speak, and a value network from scratch learns not to mislead."""

import math

import torch
from torch import Tensor

from destruct.batch import TokenWindows, TrainBatch
from destruct.engine.base import TrainEngine
from destruct.engine.topology import Topology
from destruct.minibatch import Minibatch
from destruct.ops.rows import LossCoefficients, LossRows, PolicyLoss
from destruct.ppo.update import value_loss

# No response rows: clip, KL and entropy are not read.
_CROSS_ENTROPY = LossCoefficients(clip_low=0.2, clip_high=0.2, kl_coef=0.0, kl="none", entropy_coef=0.0)


def cross_entropy_step(policy: TrainEngine, windows: TokenWindows, lr: float, topology: Topology) -> tuple[float, bool]:
    """One optimizer step of plain cross-entropy on the predicted tokens of B windows, policy alone.

    Args:
        windows: B of them, equal on every rank.

    Returns:
        loss: nats per predicted token, over all ranks; 0 where there is none.
        stepped: False when the loss or the gradient was not finite and the step was dropped.
    """
    weight = 1.0 / max(1, int(windows.target_counts.sum()))
    nats = torch.zeros((), dtype=torch.float64, device=topology.device)
    for items in topology.share(len(windows)).tensor_split(policy.accumulation):
        part = windows.select(items)
        asked = PolicyLoss(_ptx_rows(part.targets, weight), _CROSS_ENTROPY)
        output = policy(part.tokens, part.rows, asked, part.positions)
        policy.backward(output.loss)
        nats += output.loss.detach().double()
    loss = topology.sum(nats).item()
    return loss, _stepped(policy, loss, lr)


def _stepped(engine: TrainEngine, loss: float, lr: float) -> bool:
    """Step, unless the loss or the gradient is not finite; whether it did."""
    finite = math.isfinite(engine.grad_norm()) and math.isfinite(loss)
    if finite:
        engine.step(lr)
    else:
        engine.drop_gradients()
    return finite


def _ptx_rows(targets: Tensor, weight: float) -> LossRows:
    zeros = torch.zeros(len(targets), device=targets.device)
    ones = torch.ones_like(zeros)
    return LossRows(targets, ones, zeros, zeros, zeros, policy_weight=zeros, ptx_weight=ones * weight)


def value_pass(
    value: TrainEngine, minibatches: list[Minibatch[TrainBatch]], clip_range: float, lr: float, topology: Topology
) -> tuple[float, int]:
    """One pass of the value network alone over an update's rollouts.

    Returns:
        loss: mean over the minibatches, reward units squared.
        skipped: steps that were dropped because the loss or the gradient was not finite.
    """
    losses, skipped = [], 0
    for minibatch in minibatches:
        total = torch.zeros((), dtype=torch.float64, device=topology.device)
        for train in minibatch.micro_batches:
            loss = value_loss(value, train, minibatch.response_tokens, clip_range)
            value.backward(loss)
            total += loss.detach().double()
        losses.append(topology.sum(total).item())
        skipped += not _stepped(value, losses[-1], lr)
    return sum(losses) / len(losses), skipped
