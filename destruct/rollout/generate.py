"""`rollout.mode: generate`: sample responses with a KV cache on a hook-free replica of the policy."""

import torch
from torch import Tensor
from transformers import DynamicCache

from destruct.batch import PromptBatch, RolloutBatch
from destruct.engine.topology import Topology
from destruct.models.policy import PolicyNetwork
from destruct.seeding import uniform


@torch.no_grad()
def sample_responses(
    replica: PolicyNetwork, prompts: Tensor, uniforms: Tensor, temperature: float, eos_id: int, pad_id: int
) -> tuple[Tensor, Tensor]:
    """Sample up to R tokens after each prompt by the inverse CDF, without truncation (no top-k, no top-p).

    Args:
        prompts: (n, P) int64.
        uniforms: (n, R) float64 in [0, 1): the random number of each response position.

    Returns:
        responses: (n, R) int64, `pad_id` after eos.
        lengths: (n,) int64, eos included.
    """
    n, limit = uniforms.shape
    responses = prompts.new_full((n, limit), pad_id)
    lengths = torch.full((n,), limit, device=prompts.device)
    alive = torch.ones(n, dtype=torch.bool, device=prompts.device)
    cache = DynamicCache(config=replica.lm.config)
    tokens, start = prompts, 0
    for t in range(limit):
        positions = torch.arange(start, start + tokens.shape[1], device=tokens.device).expand_as(tokens)
        start += tokens.shape[1]
        body = replica.lm.model(input_ids=tokens, position_ids=positions, past_key_values=cache, use_cache=True)
        logits = replica.lm.lm_head(body.last_hidden_state[:, -1], None)
        chosen = _inverse_cdf(logits, temperature, uniforms[:, t])
        responses[alive, t] = chosen[alive]
        ended = alive & (chosen == eos_id)
        lengths[ended] = t + 1
        alive &= ~ended
        if not alive.any():
            break
        tokens = chosen[:, None]
    return responses, lengths


def _inverse_cdf(logits: Tensor, temperature: float, u: Tensor) -> Tensor:
    """The token whose share of [0, 1) holds u; float64, so that only u and the logits decide. (n, V), (n,) -> (n,)."""
    cdf = torch.softmax(logits.double() / temperature, -1).cumsum(-1)
    chosen = torch.searchsorted(cdf, (u * cdf[:, -1])[:, None], right=True).squeeze(-1)
    return chosen.clamp(max=logits.shape[-1] - 1)


def generate(
    replica: PolicyNetwork,
    prompts: PromptBatch,
    topology: Topology,
    seed: int,
    temperature: float,
    eos_id: int,
    pad_id: int,
) -> RolloutBatch:
    """Sample a response to every prompt, the ranks sharing the work.

    A token's random number is uniform(seed, draw, sample, position), so from equal weights the rollouts are the same
    at any world size.

    Args:
        prompts: all B prompts, equal on every rank.
        seed: of the run.
        temperature: divides the logits.
        eos_id: ends a response, and is its last token.
        pad_id: fills the rest of a row.

    Returns:
        All B rollouts, on every rank.
    """
    mine = topology.share(len(prompts.windows))
    p = prompts.prompt_tokens
    limit = prompts.windows.shape[1] - p
    u = uniform(seed, prompts.draw, prompts.sample[mine].cpu().numpy(), torch.arange(limit).numpy())
    uniforms = torch.from_numpy(u).to(topology.device)
    responses, lengths = sample_responses(replica, prompts.windows[mine, :p], uniforms, temperature, eos_id, pad_id)
    responses, lengths = topology.interleave(responses), topology.interleave(lengths)
    mask = torch.arange(limit, device=lengths.device) < lengths[:, None]
    last = responses.gather(1, lengths[:, None] - 1).squeeze(1)
    return RolloutBatch(prompts, torch.cat([prompts.windows[:, :p], responses], 1), mask, last == eos_id)
