"""`rollout.mode: per_position`: one token drawn from the policy at every position of the data's own text.

The state of each action is the true text before it, so one forward serves all of them and no action sees another: each
is an episode of one step (gamma = 0).
"""

import time

import torch
from torch import Tensor

from destruct.batch import PromptBatch, RolloutBatch
from destruct.engine.topology import Topology
from destruct.evaluation import WINDOWS_PER_FORWARD
from destruct.heartbeat import HEART
from destruct.models.documents import body_states
from destruct.models.policy import PolicyNetwork
from destruct.rollout.sampling import inverse_cdf
from destruct.seeding import uniform

LOGITS_AT_ONCE = 2**23
"""Logits whose distributions are held in float64 at a time: 64 MiB."""


@torch.no_grad()
def draw_tokens(
    replica: PolicyNetwork, windows: Tensor, positions: Tensor, uniforms: Tensor, temperature: float
) -> Tensor:
    """Draw a token for each of the last R columns of every window.

    Args:
        windows: (n, T) int64.
        positions: (n, T) int64, those of `PromptBatch`.
        uniforms: (n, R) float64 in [0, 1): the random number of each column.
        temperature: divides the logits.

    Returns:
        (n, R) int64; column t is drawn given the prompt and the t tokens of the data after it.
    """
    n, limit = uniforms.shape
    hidden = body_states(replica.body, windows, positions).view(*windows.shape, -1)
    states, numbers = hidden[:, -limit - 1 : -1].flatten(0, 1), uniforms.flatten()
    chunk = max(1, LOGITS_AT_ONCE // replica.lm.config.vocab_size)
    drawn = [
        inverse_cdf(replica.head.logits(part), temperature, u)
        for part, u in zip(states.split(chunk), numbers.split(chunk), strict=True)
    ]
    return torch.cat(drawn).view(n, limit)


def draw_everywhere(
    replica: PolicyNetwork, prompts: PromptBatch, topology: Topology, seed: int, temperature: float
) -> RolloutBatch:
    """Draw a token at every position after the prompt of each window, the ranks sharing the work.

    A token's random number is uniform(seed, draw, sample, position), as in generation.

    Args:
        prompts: all B windows, equal on every rank; with prompt_tokens = 1 every token but the first is acted on.
            Where a continuation is short, or not there, so are the rollout's tokens.
        seed: of the run.
        temperature: divides the logits.

    Returns:
        All B rollouts, on every rank; none of them stops early.
    """
    mine = topology.share(len(prompts.windows))
    limit = prompts.windows.shape[1] - prompts.prompt_tokens
    numbers = uniform(seed, prompts.draw, prompts.sample[mine].cpu().numpy(), torch.arange(limit).numpy())
    uniforms = torch.from_numpy(numbers).to(topology.device)
    parts = zip(mine.split(WINDOWS_PER_FORWARD), uniforms.split(WINDOWS_PER_FORWARD), strict=True)
    windows, positions = prompts.windows, prompts.positions
    begun = time.monotonic()
    shares = [draw_tokens(replica, windows[rows], positions[rows], u, temperature) for rows, u in parts]
    mine_drawn = torch.cat(shares)
    HEART.worked_alone(begun, len(shares), mine_drawn.numel())
    drawn = topology.interleave(mine_drawn)
    mask, padding = prompts.continuation_mask, windows[:, prompts.prompt_tokens :]
    nothing = torch.zeros(len(drawn), dtype=torch.bool, device=drawn.device)
    return RolloutBatch(prompts, torch.where(mask, drawn, padding), mask, nothing, teacher_forced=True)
