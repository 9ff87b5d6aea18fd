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
            "responses": rollouts.responses.tolist(),
            "lengths": rollouts.lengths.tolist(),
            "teacher_forced": rollouts.teacher_forced,
            "logprobs": self.logprobs.tolist(),
            "temperature": self.temperature,
        }


def probe_from(state: dict[str, Any], device: torch.device) -> Probe:
    """What `state_dict` gave."""
    prompts = probe_prompts(torch.tensor(state["windows"]), state["prompt_tokens"], device)
    responses = torch.tensor(state["responses"], device=device)
    lengths = torch.tensor(state["lengths"], device=device)
    mask = torch.arange(responses.shape[1], device=device) < lengths[:, None]
    rollouts = RolloutBatch(prompts, responses, mask, lengths < responses.shape[1], state["teacher_forced"])
    logprobs = torch.tensor(state["logprobs"], dtype=torch.float32, device=device)
    return Probe(rollouts, logprobs, state["temperature"])


def probe_prompts(windows: Tensor, prompt_tokens: int, device: torch.device) -> PromptBatch:
    """The prompts of (n, T) windows, at an address of their own."""
    number = torch.arange(len(windows), device=device)
    return PromptBatch(DRAW, prompt_tokens, windows.to(device), source=torch.zeros_like(number), sample=number)


def probe_windows(held_out: list[Tensor], ranks: int) -> Tensor:
    """About 32 held-out windows (n, T), the sources taking turns; n is a multiple of the ranks, which share them."""
    in_turn = [windows[turn] for turn in range(WINDOWS) for windows in held_out if turn < len(windows)]
    count = -(-min(WINDOWS, len(in_turn)) // ranks) * ranks
    return torch.stack([in_turn[place % len(in_turn)] for place in range(count)])


def measure(
    engine: TrainEngine | FrozenEngine, rollouts: RolloutBatch, temperature: float, topology: Topology
) -> Tensor:
    """Logprobs (n, R) float32 of the probe's tokens, the ranks sharing the work; all ranks call it."""
    mine = topology.share(len(rollouts.responses)).to(topology.device)
    parts = [rollouts.select(rows) for rows in mine.split(WINDOWS_PER_FORWARD)]
    return topology.interleave(torch.cat([response_logprobs(engine, part, temperature, ptx=False) for part in parts]))


def kl_from_initial(engine: TrainEngine, probe: Probe, topology: Topology) -> float:
    """k3(initial || policy now) on what the initial model said, mean over its tokens, nats per token.

    All ranks call it.
    """
    now = measure(engine, probe.rollouts, probe.temperature, topology)
    return k3(now - probe.logprobs)[probe.rollouts.mask].double().mean().item()
