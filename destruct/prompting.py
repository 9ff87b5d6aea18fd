"""The user's own prompts, continued at each evaluation."""

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch

from destruct.config.prompts import Prompt
from destruct.data.tokenizing import Tokenizer
from destruct.engine.topology import Topology
from destruct.errors import DestructError
from destruct.models.policy import PolicyNetwork
from destruct.rollout.generate import Sampling, sample_responses
from destruct.seeding import uniform

_DRAW = -2  # the address of their random numbers, which no batch of the run has


def encode_prompts(prompts: Sequence[Prompt], tokenizer: Tokenizer, longest: int) -> list[list[int]]:
    """Tokens of each prompt.

    Args:
        longest: most tokens that leave room for the continuation.

    Raises:
        DestructError: a prompt is longer, or has no token.
    """
    encoded = [ids.tolist() for ids in tokenizer.encode([prompt.text for prompt in prompts])]
    for prompt, ids in zip(prompts, encoded, strict=True):
        if not 0 < len(ids) <= longest:
            raise DestructError(
                f"the prompt {prompt.text[:40]!r} has {len(ids)} tokens; 1 to {longest} leave room to continue",
                "change it in the file of prompts.file, or change prompts.response_tokens",
            )
    return encoded


def continue_prompts(
    replica: PolicyNetwork,
    prompts: Sequence[list[int]],
    limit: int,
    seed: int,
    how: Sampling,
    topology: Topology,
    in_step: bool = False,
) -> list[list[int]]:
    """Sample a continuation of every prompt, the ranks sharing them; all ranks call it.

    Args:
        replica: filled with the weights to speak with.
        prompts: tokens of each.
        limit: most tokens of a continuation.
        seed: of the run; a prompt's random numbers depend on it and on the prompt's place alone.
        in_step: every rank continues all prompts, and so calls the network as often as the others.

    Returns:
        Sampled tokens of each, the one that ended it included, on every rank.
    """
    share = range(len(prompts)) if in_step else topology.share(len(prompts)).tolist()
    mine = sorted(share, key=lambda number: len(prompts[number]))
    found: dict[int, list[int]] = {}
    # Prompts of one length at a time: rows are left-aligned, and nothing is padded.
    for _, group in groupby(mine, key=lambda number: len(prompts[number])):
        numbers = list(group)
        tokens = torch.tensor([prompts[number] for number in numbers], device=topology.device)
        u = uniform(seed, _DRAW, np.array(numbers), np.arange(limit))
        responses, lengths, _ = sample_responses(replica, tokens, torch.from_numpy(u).to(topology.device), how)
        rows = zip(numbers, responses.tolist(), lengths.tolist(), strict=True)
        found |= {number: row[:length] for number, row, length in rows}
    everyone = {number: row for part in topology.from_all(found) for number, row in part.items()}
    return [everyone[number] for number in range(len(prompts))]
