"""What the warm-up and PPO both do: draw, sample, score, evaluate."""

from collections.abc import Sequence

import numpy as np
import torch

from destruct.batch import PromptBatch, RolloutBatch, ScoredBatch
from destruct.data.mixture import Mixture
from destruct.drift import kl_from_initial
from destruct.evaluation import Validation, validate
from destruct.minibatch import Minibatch
from destruct.ops.rows import LossCoefficients
from destruct.prompting import continue_prompts
from destruct.recording import record_prompts, record_validation
from destruct.rollout.generate import generate
from destruct.rollout.packing import pack
from destruct.rollout.per_position import draw_everywhere
from destruct.rollout.score import ScoreSettings, score
from destruct.run import Run

NAMED = 3
"""Figures that were not finite of which a line tells the names."""


def draw(run: Run, weights: np.ndarray) -> PromptBatch:
    """B windows by the sampling weights, the same on every rank.

    Raises:
        DestructError: a stream cannot be read, be it on one rank alone.
        OutOfData: as `Mixture.draw`.
    """
    before = run.mixture.exhausted
    prompts = read_pieces(run, run.mixture, weights)
    for name in set(run.mixture.exhausted) - set(before):
        run.screen.say(f"source {name!r} is exhausted: its weight falls to the others")
    return prompts


def read_pieces(run: Run, mixture: Mixture, weights: np.ndarray) -> PromptBatch:
    """The next batch of a mixture; errors are those of `draw`."""

    def read() -> PromptBatch:
        return run.loader.read(mixture.draw(run.config.rollout.batch_size, weights), run.topology.device)

    # About a millisecond; without it the others would wait for the rank that failed in a collective.
    prompts = run.topology.together(read)
    run.state.tokens += prompts.real_tokens
    return prompts


def roll_out(run: Run, prompts: PromptBatch) -> RolloutBatch:
    """What the policy samples; all B rollouts on every rank."""
    rollouts = sample(run, prompts)
    run.state.tokens += int(rollouts.mask.sum())
    return rollouts


def sample(run: Run, prompts: PromptBatch) -> RolloutBatch:
    """Let the replica sample, filled from the policy's shards."""
    fill_replica(run)
    seed, how = run.config.run.seed, run.sampling
    if run.config.rollout.mode == "per_position":
        return draw_everywhere(run.replica, prompts, run.topology, seed, how.temperature)
    return generate(run.replica, prompts, run.topology, seed, how, run.in_step)


def fill_replica(run: Run) -> None:
    """Copy the policy's weights into the replica, unless it takes them layer by layer as it speaks."""
    if not run.in_step:
        run.policy.fill(run.replica)
        run.has_sampled = True


def heed_skips(run: Run, skipped: int, not_finite: Sequence[str]) -> None:
    """Say that steps were dropped; end this life where that helps no more.  All ranks call it.

    Args:
        skipped: steps of this update (of this step, in the warm-up) that were dropped.
        not_finite: what of them was not finite, in words.

    Raises:
        Diverged: on all ranks; the weights themselves are broken, or too many updates in a row had such a step.
    """
    state = run.state
    state.skipped_in_a_row = state.skipped_in_a_row + 1 if skipped else 0
    if not skipped:
        return
    more = f" and {len(not_finite) - NAMED} more" if len(not_finite) > NAMED else ""
    why = f"{', '.join(not_finite[:NAMED])}{more}"
    run.screen.say(f"{skipped} step(s) after update {state.update} dropped, as this was not finite: {why}")
    if wrong := run.broken():
        run.set_back(", ".join(wrong))
    if state.skipped_in_a_row >= run.config.guard.skipped_updates:
        run.set_back(f"{why}, {state.skipped_in_a_row} times in a row")


def pack_and_score(run: Run, rollouts: RolloutBatch) -> list[Minibatch[ScoredBatch]]:
    """Pack once, then score on exactly the micro-batches that the update will use."""
    order = torch.Generator().manual_seed(run.key("packing", rollouts.prompts.draw))
    shuffled = torch.randperm(len(rollouts.responses), generator=order)
    networks, settings = run.networks, score_settings(run)
    minibatches = run.config.ppo.minibatches
    packed = pack(rollouts, shuffled, minibatches, run.policy.accumulation, run.topology, settings.ptx)
    return [
        score(minibatch, networks.policy, networks.reference, networks.value, settings)
        for minibatch in run.reward(packed, run.topology)
    ]


def loss_coefficients(run: Run) -> LossCoefficients:
    """The loss's coefficients, with beta as it stands now."""
    c = run.config
    in_loss = c.kl.in_loss != "none"
    return LossCoefficients(
        clip_low=c.ppo.clip_range,
        clip_high=c.ppo.upper_clip_range,
        kl_coef=run.state.kl_coef if in_loss else 0.0,
        kl=c.kl.in_loss,
        entropy_coef=c.ppo.entropy_coef,
        dual_clip=c.ppo.dual_clip,
    )


def score_settings(run: Run) -> ScoreSettings:
    """What scoring depends on, with beta as it stands now."""
    c = run.config
    return ScoreSettings(
        temperature=c.rollout.temperature,
        ptx=c.ppo.ptx_coef > 0,
        kl_coef=run.state.kl_coef if c.kl.in_reward else 0.0,
        exact_kl=loss_coefficients(run).exact_kl,
    )


def evaluate(run: Run, phase: str) -> Validation:
    """Validation loss of every source, the drift from the start, the user's prompts; logged under `phase`."""
    config = run.config
    with run.watch("evaluate"):
        validation = validate(run.policy, run.inputs.validation, run.topology)
        if run.probe is not None:
            run.state.kl_from_initial = kl_from_initial(run.policy, run.probe, run.topology)
        record_validation(run, phase, validation)
        if run.prompts:
            fill_replica(run)
            limit, seed = config.prompts.response_tokens, config.run.seed
            said = continue_prompts(run.replica, run.prompts, limit, seed, run.sampling, run.topology, run.in_step)
            record_prompts(run, phase, said)
    return validation
