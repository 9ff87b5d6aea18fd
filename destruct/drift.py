"""How far the policy has gone from where PPO began, on a small fixed set.

A rolling reference bounds the drift between two refreshes alone; this one is measured from the start.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from destruct.batch import PromptBatch, RolloutBatch
from destruct.engine.base import FrozenEngine, TrainEngine
from destruct.engine.topology import Topology
from destruct.evaluation import WINDOWS_PER_FORWARD
from destruct.ppo.kl import k3
from destruct.rollout.score import response_logprobs

DRAW = -1  # the address of the probe's random numbers, which no batch of the run has
WINDOWS = 32


@dataclass(frozen=True, slots=True)
class Probe:
    """What the initial model said after fixed held-out prompts, equal on every rank."""

    rollouts: RolloutBatch
    logprobs: Tensor  # (n, R) float32  nats, under the initial model
    temperature: float  # of both

    def state_dict(self) -> dict[str, Any]:
        """All that resumes, in JSON's types."""
        rollouts = self.rollouts
        return {
            "prompt_tokens": rollouts.prompts.prompt_tokens,
            "windows": rollouts.prompts.windows.tolist(),
            "prompt_lengths": rollouts.prompts.prompt_lengths.tolist(),
            "continuation_lengths": rollouts.prompts.continuation_lengths.tolist(),
            "responses": rollouts.responses.tolist(),
            "lengths": rollouts.lengths.tolist(),
            "teacher_forced": rollouts.teacher_forced,
            "logprobs": self.logprobs.tolist(),
            "temperature": self.temperature,
        }


def probe_from(state: dict[str, Any], device: torch.device) -> Probe:
    """What `state_dict` gave."""
    number = torch.arange(len(state["windows"]), device=device)
    prompts = PromptBatch(
        DRAW,
        state["prompt_tokens"],
        torch.tensor(state["windows"], device=device),
        torch.tensor(state["prompt_lengths"], device=device),
        torch.tensor(state["continuation_lengths"], device=device),
        source=torch.zeros_like(number),
        sample=number,
    )
    responses = torch.tensor(state["responses"], device=device)
    lengths = torch.tensor(state["lengths"], device=device)
    mask = torch.arange(responses.shape[1], device=device) < lengths[:, None]
    rollouts = RolloutBatch(prompts, responses, mask, lengths < responses.shape[1], state["teacher_forced"])
    logprobs = torch.tensor(state["logprobs"], dtype=torch.float32, device=device)
    return Probe(rollouts, logprobs, state["temperature"])


def probe_prompts(held_out: list[PromptBatch], ranks: int, device: torch.device) -> PromptBatch:
    """About 32 held-out prompts at an address of their own, the sources taking turns; their number is a multiple of the
    ranks, which share them.

    Args:
        held_out: of each source, all of one P and T.
    """
    in_turn = [
        (source, torch.tensor([turn])) for turn in range(WINDOWS) for source in held_out if turn < len(source.windows)
    ]
    count = -(-min(WINDOWS, len(in_turn)) // ranks) * ranks
    chosen = [in_turn[place % len(in_turn)] for place in range(count)]
    number = torch.arange(count, device=device)
    return PromptBatch(
        DRAW,
        held_out[0].prompt_tokens,
        torch.cat([source.windows[row] for source, row in chosen]).to(device),
        torch.cat([source.prompt_lengths[row] for source, row in chosen]).to(device),
        torch.cat([source.continuation_lengths[row] for source, row in chosen]).to(device),
        source=torch.zeros_like(number),
        sample=number,
    )


def measure(
    engine: TrainEngine | FrozenEngine, rollouts: RolloutBatch, temperature: float, topology: Topology
) -> Tensor:
    """Logprobs (n, R) float32 of the probe's tokens, the ranks sharing the work; all ranks call it."""
    count = len(rollouts.responses)
    # The ranks of this life may not divide what those of an earlier one made: rows are read twice where they do not.
    whole = -(-count // topology.world_size) * topology.world_size
    mine = topology.share(whole).to(topology.device) % count
    parts = [rollouts.select(rows) for rows in mine.split(WINDOWS_PER_FORWARD)]
    logprobs = torch.cat([response_logprobs(engine, part, temperature, ptx=False) for part in parts])
    return topology.interleave(logprobs)[:count]


def kl_from_initial(engine: TrainEngine, probe: Probe, topology: Topology) -> float:
    """k3(initial || policy now) on what the initial model said, mean over its tokens, nats per token.

    All ranks call it.
    """
    now = measure(engine, probe.rollouts, probe.temperature, topology)
    return k3(now - probe.logprobs)[probe.rollouts.mask].double().mean().item()
