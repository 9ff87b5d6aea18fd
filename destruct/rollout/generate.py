"""`rollout.mode: generate`: sample responses with a KV cache on a hook-free replica of the policy."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import StopStringCriteria

from destruct.batch import PromptBatch, RolloutBatch
from destruct.data.tokenizing import Tokenizer
from destruct.engine.topology import Topology
from destruct.heartbeat import HEART
from destruct.models.policy import PolicyNetwork, speaking
from destruct.rollout.key_value_cache import reserve, without
from destruct.rollout.packed_weights import packed
from destruct.rollout.sampling import inverse_cdf
from destruct.seeding import uniform

Ends = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a response is sampled, and where it ends."""

    temperature: float  # divides the logits
    eos_id: int  # ends a response, and is its last token
    pad_id: int  # fills the rest of a row
    ends: Ends | None = None  # responses so far (n, t) -> (n,) bool: the last token completed a stop string


def sampling(tokenizer: Tokenizer, temperature: float, stop: tuple[str, ...]) -> Sampling:
    """The settings of a run.

    Args:
        stop: texts that end a response; the token that completes one is the response's last.
    """
    criteria = StopStringCriteria(tokenizer.fast, list(stop)) if stop else None
    # The scores are for other criteria; this one reads the tokens alone.
    ends = None if criteria is None else lambda responses: criteria(responses, None)
    return Sampling(temperature, tokenizer.eos_id, tokenizer.pad_id, ends)


@torch.no_grad()
def sample_responses(
    replica: PolicyNetwork,
    prompts: Tensor,
    uniforms: Tensor,
    how: Sampling,
    prompt_lengths: Tensor | None = None,
    go_on: Callable[[bool], bool] = bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sample up to R tokens after each prompt by the inverse CDF, without truncation (no top-k, no top-p).

    Args:
        prompts: (n, P) int64.
        uniforms: (n, R) float64 in [0, 1): the random number of each response position.
        prompt_lengths: (n,) int64, 1 to P: so many tokens at the end of each row are its prompt; all P for None.
        go_on: whether to sample a further token, asked with whether a response of these has not ended.

    Returns:
        responses: (n, R) int64, `pad_id` after the end.
        lengths: (n,) int64, the token that ended the response included.
        stopped: (n,) bool, the response ended before R tokens were sampled, or with the last of them.
    """
    n, limit = uniforms.shape
    responses = prompts.new_full((n, limit), how.pad_id)
    lengths = torch.full((n,), limit, device=prompts.device)
    stopped = torch.zeros(n, dtype=torch.bool, device=prompts.device)
    tokens, positions, mask = _laid_out(prompts, prompt_lengths)
    cache = reserve(replica.lm.config, tokens.shape[1] + limit - 1)
    rows = torch.arange(n, device=prompts.device)  # that are still being sampled
    over = False  # all have ended, and the last rows are read on for the sake of other ranks
    with speaking(replica), packed(replica, n):
        for t in range(limit):
            HEART.alive()
            body = replica.body(
                input_ids=tokens,
                position_ids=positions,
                attention_mask=mask,
                past_key_values=cache,
                use_cache=True,
            )
            logits = replica.head.logits(body.last_hidden_state[:, -1])
            chosen = inverse_cdf(logits, how.temperature, uniforms[rows, t])
            if not over:
                responses[rows, t] = chosen
                ended = _ended(responses[rows, : t + 1], how)
                lengths[rows[ended]], stopped[rows[ended]] = t + 1, True
                alive = without(ended)
                over = len(alive) == 0
            if t + 1 == limit or not go_on(not over):
                break
            if not over and len(alive) < len(rows):
                cache.reorder_cache(alive)
                rows, chosen, positions = rows[alive], chosen[alive], positions[alive]
                mask = None if mask is None else mask[alive]
            tokens, positions = chosen[:, None], positions[:, -1:] + 1
            mask = None if mask is None else torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    return responses, lengths, stopped


def _ended(responses: Tensor, how: Sampling) -> Tensor:
    """(n,) bool: the last token of responses so far (n, t) ended them."""
    ended = responses[:, -1] == how.eos_id
    return ended if how.ends is None else ended | how.ends(responses)


def _laid_out(prompts: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Tokens, positions and attention mask (n, columns), each int64, of prompts as `sample_responses` takes them.

    With lengths every row has one more column of padding: transformers leaves out a mask of ones alone, and the kernels
    that run without one round differently, so that a rank whose prompts all happened to be long would sample other
    tokens than one process does.

    A column of padding sees nothing: `sdpa` gives it 0 and `eager` the mean of all columns, as its masked scores are
    finite in float32 and bfloat16 (in float64 they are not, and NaN would spread from there).
    """
    if lengths is None:
        return prompts, torch.arange(prompts.shape[1], device=prompts.device).expand_as(prompts), None
    tokens = torch.cat([prompts[:, :1], prompts], 1)
    column, width = torch.arange(tokens.shape[1], device=tokens.device), tokens.shape[1]
    positions = column - (width - lengths[:, None])
    return tokens, positions.clamp(min=0), (positions >= 0).long()


def generate(
    replica: PolicyNetwork, prompts: PromptBatch, topology: Topology, seed: int, how: Sampling, in_step: bool = False
) -> RolloutBatch:
    """Sample a response to every prompt, the ranks sharing the work.

    A token's random number is uniform(seed, draw, sample, position), so from equal weights the rollouts are the same
    at any world size.

    Args:
        prompts: all B prompts, equal on every rank.
        seed: of the run.
        in_step: the ranks sample equally many tokens, as a network that gathers layers demands.

    Returns:
        All B rollouts, on every rank.
    """
    mine = topology.share(len(prompts.windows))
    p = prompts.prompt_tokens
    limit = prompts.windows.shape[1] - p
    u = uniform(seed, prompts.draw, prompts.sample[mine].cpu().numpy(), torch.arange(limit).numpy())
    uniforms = torch.from_numpy(u).to(topology.device)
    # By the prompts of all ranks, which so make the same calls whatever their shares hold.
    lengths = prompts.prompt_lengths[mine] if bool((prompts.prompt_lengths < p).any()) else None
    go_on = (lambda alive: not topology.all_agree(not alive)) if in_step else bool
    begun = time.monotonic()
    sampled = sample_responses(replica, prompts.windows[mine, :p], uniforms, how, lengths, go_on)
    if not in_step and len(mine):
        HEART.worked_alone(begun, int(sampled[1].max()), int(sampled[1].sum()))
    responses, lengths, stopped = (topology.interleave(part) for part in sampled)
    mask = torch.arange(limit, device=lengths.device) < lengths[:, None]
    return RolloutBatch(prompts, responses, mask, stopped, teacher_forced=False)
