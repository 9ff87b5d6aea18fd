"""The training loop: one update after another, as docs/architecture.md tells it."""

import math
from collections.abc import Callable

import numpy as np
import torch

from destruct.batch import TrainBatch
from destruct.checkpoint.state import TrainState
from destruct.config.ppo import KLConfig
from destruct.data.mixture import OutOfData
from destruct.errors import DestructError
from destruct.minibatch import Minibatch, micro_batches
from destruct.ppo.distance import kl_to_reference
from destruct.ppo.kl import controlled_coef, next_coef
from destruct.ppo.update import UpdateStats, ppo_update
from destruct.preparation import warm_up
from destruct.recording import feedback_per_source, record_round, record_update, with_validation
from destruct.rollout.score import with_advantages
from destruct.run import Run
from destruct.steps import draw, evaluate, heed_skips, loss_coefficients, pack_and_score, roll_out
from destruct.tracking.live import Standing


def train(run: Run) -> TrainState:
    """Warm up, then make the planned updates; each epoch ends with a validation and a checkpoint."""
    begun = run.state.update
    run.compare()
    try:
        make_updates(run)
    except OutOfData as end:
        end_early(run, end.names, begun)
    if "after" not in run.state.validation:  # resumed before any validation, by a plan that ends here
        evaluate_update(run)
    run.settle()
    return run.state


def make_updates(run: Run) -> None:
    """The warm-up, if it is to come, and the planned updates.  Raises OutOfData where a batch cannot be filled."""
    if run.probe is None:
        warm_up(run)
    with run.screen.phase("ppo", run.updates, done=run.state.update) as progress:
        while run.state.update < run.updates:
            run.pause()
            progress.advance(one_update(run))


def end_early(run: Run, exhausted: list[str], begun: int) -> None:
    """Validate and save where the data ended, before the planned updates were made.

    Args:
        begun: updates that were made before a resume: where none was added, only a validation may be missing.

    Raises:
        DestructError: it ended before the first of them.
    """
    if run.state.update == 0:
        raise DestructError(
            f"the sources {', '.join(exhausted)} are exhausted before the first update",
            "give them more text, raise max_epochs, set on_exhausted: repeat, or make rollout.batch_size smaller",
        )
    run.screen.say(f"{', '.join(exhausted)} exhausted: no further batch, the run ends after update {run.state.update}")
    if run.state.update == begun == run.state.validated:
        return
    missing = run.state.validated != run.state.update
    run.state.update -= 1  # what is logged now is of the last update
    best = missing and evaluate_update(run)
    run.state.update += 1
    run.save(best)


def one_update(run: Run) -> Standing:
    """Round if it is due, rollouts, PPO, the KL constraint; returns what the screen shows of it."""
    state, config, watch = run.state, run.config, run.watch
    if state.update % config.frozen.refresh_every == 0:
        # Where the data ends, no round moves the state any more.
        run.topology.together(lambda: run.mixture.require(config.rollout.batch_size))
        with watch("round"):
            run.frozen.refresh(run.policy)
            gone = np.isin(run.names, run.mixture.exhausted).astype(np.float64)
            record_round(run, run.curriculum.round(run.frozen, run.topology, run.mixture.epochs, gone))
    with watch("data"):
        prompts = draw(run, run.curriculum.weights)
    with watch("generate"):
        rollouts = roll_out(run, prompts)
    with watch("score"):
        scored = pack_and_score(run, rollouts)
        batches = with_advantages(scored, config.gamma, config.ppo.lam, run.topology)
    with watch("update"):
        stats = optimize(run, batches)
    with watch("kl"):
        kl = kl_to_reference(run.policy, scored, config.rollout.temperature, run.topology)
    feedback = feedback_per_source(micro_batches(batches), len(run.names), run.topology)
    run.curriculum.count(
        prompts.tokens_per_source(len(run.names)).numpy(force=True), stats.epochs, feedback.numpy(force=True)
    )
    rewards = feedback[:, :2]
    state.rewards.append(rewards.tolist())
    beta = state.kl_coef
    constrain(state, kl, config.kl, config.rollout.batch_size, run.screen.say)
    standing = record_update(run, batches, stats, rewards, kl, beta)
    epoch_ends = run.is_due(run.updates_per_epoch)
    best = (epoch_ends or run.is_due(config.run.evaluate_every)) and evaluate_update(run)
    # What comes of updates with dropped steps is not known yet; but the end of the run is kept in any case.
    well = state.skipped_in_a_row == 0 or state.update + 1 == run.updates
    save = well and (best or epoch_ends or run.is_due(config.run.checkpoint_every))
    if run.is_due(config.guard.compare_every):
        with watch("compare"):
            run.compare()
    state.update += 1
    if save:
        with watch("checkpoint"):
            run.save(best and state.skipped_in_a_row == 0)
    return with_validation(run, standing)


def optimize(run: Run, batches: list[Minibatch[TrainBatch]]) -> UpdateStats:
    """The PPO epochs of one update, with beta and the learning rates as they stand now."""
    state, coefficients = run.state, loss_coefficients(run)
    stats = ppo_update(
        run.policy,
        run.value,
        batches,
        coefficients,
        run.update_settings,
        first_step=state.optimizer_steps,
        order=torch.Generator().manual_seed(run.key("minibatch order", state.update)),
        topology=run.topology,
        # Once per update: its forwards would each gather it anew.
        reference_head=run.networks.reference.head() if coefficients.exact_kl else None,
    )
    run.mark_first_step()
    state.optimizer_steps += stats.steps
    state.skipped += stats.skipped
    heed_skips(run, stats.skipped, stats.not_finite)
    return stats


def constrain(state: TrainState, kl: float, constraint: KLConfig, rollouts: int, say: Callable[[str], None]) -> None:
    """Set the next update's coefficient: led by the KL's target if there is one, then raised by a breach of the bound,
    which is counted and said; nan is a breach.

    Args:
        kl: k3(policy after the update || reference), nats per token.
        rollouts: B of the update.
    """
    state.kl_max = max(state.kl_max, kl if math.isfinite(kl) else math.inf)
    if constraint.target is not None:
        state.kl_coef = controlled_coef(state.kl_coef, kl, constraint.target, rollouts, constraint.horizon)
    if not kl <= constraint.bound:
        state.breaches += 1
        state.kl_coef = next_coef(state.kl_coef, kl, constraint.bound, constraint.breach_factor)
        pull = f"beta is now {state.kl_coef:.4g}" if state.kl_coef > 0 else "kl.coef is 0, so nothing pulls it back"
        say(f"KL {kl:.4f} passed kl.bound={constraint.bound}; {pull}")


def evaluate_update(run: Run) -> bool:
    """Validate in PPO; True when the mean is below that of every checkpoint so far (nan never is)."""
    validation = evaluate(run, "ppo")
    run.settle()  # a best one that could not be written is none
    run.state.validation["after"], run.state.validated = validation.as_summary(), run.state.update + 1
    return validation.mean < run.state.best_loss
