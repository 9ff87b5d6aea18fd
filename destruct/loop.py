"""The training loop: one update after another, as docs/architecture.md tells it."""

import math
from collections.abc import Callable

import numpy as np
import torch

from destruct.batch import Minibatch, PromptBatch, ScoredBatch, TrainBatch
from destruct.build import Run
from destruct.checkpoint.state import TrainState
from destruct.config.ppo import KLConfig
from destruct.engine.schedule import cosine_to_tenth
from destruct.evaluation import Validation, validate
from destruct.ppo.update import kl_to_reference, ppo_update
from destruct.recording import record_round, record_update, record_validation
from destruct.rollout.generate import generate
from destruct.rollout.packing import pack
from destruct.rollout.score import score, with_advantages
from destruct.warmup import cross_entropy_step, value_pass


def train(run: Run) -> TrainState:
    """Warm up, then make the planned updates; ends with a checkpoint and the last validation."""
    if run.state.update == 0:
        warm_up(run)
    with run.screen.phase("ppo", run.updates, done=run.state.update) as phase:
        while run.state.update < run.updates:
            phase.advance(one_update(run))
    run.state.validation["after"] = evaluate(run, "after").as_summary()
    return run.state


def warm_up(run: Run) -> None:
    """Cross-entropy for the policy, then Monte-Carlo returns for the value network; the weights stay at the prior."""
    warmup, prior = run.config.warmup, run.curriculum.weights
    run.state.validation["before"] = evaluate(run, "before").as_summary()
    with run.screen.phase("warm-up", warmup.lm_updates) as phase:
        for step in range(warmup.lm_updates):
            prompts = draw(run, prior)
            lr = cosine_to_tenth(warmup.lm_lr, step, warmup.lm_updates)
            loss, stepped = cross_entropy_step(run.policy, prompts.windows, lr, run.topology)
            run.state.skipped += not stepped
            run.mark_first_step()
            run.log("warmup", step, {"warmup/lm_loss": loss})
            phase.advance(f"loss {loss:.3f}")
    run.frozen.refresh(run.policy)
    with run.screen.phase("value", warmup.value_updates) as phase:
        for step in range(warmup.value_updates):
            batches = with_returns(run, collect(run, draw(run, prior)), lam=1.0)
            settings = run.config.ppo
            loss, skipped = value_pass(run.value, batches, settings.value_clip_range, settings.value_lr, run.topology)
            run.state.skipped += skipped
            run.log("value_warmup", step, {"warmup/value_loss": loss})
            phase.advance(f"loss {loss:.4f}")
    run.state.validation["after_warmup"] = evaluate(run, "after_warmup").as_summary()
    run.watch.take()


def one_update(run: Run) -> str:
    """Round if it is due, rollouts, PPO, the KL constraint; returns a line for the screen."""
    state, watch = run.state, run.watch
    if state.update % run.config.frozen.refresh_every == 0:
        with watch("round"):
            record_round(run, run.curriculum.round(run.policy, run.frozen, run.topology))
    scored = collect(run, draw(run, run.curriculum.weights))
    with watch("score"):
        batches = with_returns(run, scored, run.config.ppo.lam)
    with watch("update"):
        order = torch.Generator().manual_seed(run.key("minibatch order", state.update))
        stats = ppo_update(
            run.policy,
            run.value,
            batches,
            run.coefficients(),
            run.update_settings,
            state.optimizer_steps,
            order,
            run.topology,
        )
    run.mark_first_step()
    with watch("kl"):
        kl = kl_to_reference(run.policy, scored, run.config.rollout.temperature, run.topology)
    beta = constrain(state, kl, run.config.kl, run.screen.say)
    state.optimizer_steps += stats.steps
    state.skipped += stats.skipped
    line = record_update(run, batches, stats, kl, beta)
    if run.is_due(run.config.run.evaluate_every):
        evaluate(run, "ppo")
    due = run.is_due(run.config.run.checkpoint_every)
    state.update += 1
    if due or state.update == run.updates:
        with watch("checkpoint"):
            run.save()
    return line


def draw(run: Run, weights: np.ndarray) -> PromptBatch:
    """B windows by the sampling weights, the same on every rank."""
    drawn = run.mixture.draw(run.config.rollout.batch_size, weights)
    windows = torch.stack([run.train_windows[s][i] for s, i in zip(drawn.source, drawn.index, strict=True)])
    run.state.tokens += windows.numel()
    return PromptBatch(
        drawn.number,
        run.config.rollout.prompt_tokens,
        windows.to(run.topology.device),
        torch.from_numpy(drawn.source).to(run.topology.device),
        torch.from_numpy(drawn.sample).to(run.topology.device),
    )


def collect(run: Run, prompts: PromptBatch) -> list[Minibatch[ScoredBatch]]:
    """Roll out, pack once, score on exactly the micro-batches that the update will use."""
    config = run.config
    with run.watch("generate"):
        run.policy.fill(run.replica)
        ids = (run.tokenizer.eos_id, run.tokenizer.pad_id)
        rollouts = generate(run.replica, prompts, run.topology, config.run.seed, config.rollout.temperature, ids)
    run.state.tokens += int(rollouts.mask.sum())
    order = torch.Generator().manual_seed(run.key("packing", prompts.draw))
    shuffled = torch.randperm(len(prompts.windows), generator=order)
    packed = pack(rollouts, shuffled, config.ppo.minibatches, run.policy.accumulation, run.topology)
    settings = run.score_settings()
    with run.watch("score"):
        # Before any forward: a user's reward may raise on one rank alone, and the others would wait in a gather.
        rewarded = run.topology.together(lambda: [minibatch.map(run.reward) for minibatch in packed])
        return [
            minibatch.map(lambda micro: score(micro, run.policy, run.frozen, run.value, settings))
            for minibatch in rewarded
        ]


def with_returns(run: Run, scored: list[Minibatch[ScoredBatch]], lam: float) -> list[Minibatch[TrainBatch]]:
    """GAE and whitening; lam = 1 gives Monte-Carlo returns."""
    return with_advantages(scored, run.config.ppo.gamma, lam, run.topology)


def constrain(state: TrainState, kl: float, constraint: KLConfig, say: Callable[[str], None]) -> float:
    """Hold the KL constraint: a breach is counted, said, and raises the coefficient; nan is a breach.

    Args:
        kl: k3(policy after the update || reference), nats per token.

    Returns:
        beta as it was in this update.
    """
    beta = state.kl_coef
    state.kl_max = max(state.kl_max, kl if math.isfinite(kl) else math.inf)
    if not kl <= constraint.bound:
        state.breaches += 1
        state.kl_coef *= constraint.breach_factor
        say(f"KL {kl:.4f} passed kl.bound={constraint.bound}; beta is now {state.kl_coef:.4g}")
    return beta


def evaluate(run: Run, phase: str) -> Validation:
    """Validation loss of every source, logged under `phase`."""
    with run.watch("evaluate"):
        validation = validate(run.policy, run.held_out, run.topology)
    record_validation(run, phase, validation)
    return validation
