"""The training loop: one update after another, as docs/architecture.md tells it."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from destruct.batch import PromptBatch, RolloutBatch, ScoredBatch, TrainBatch
from destruct.checkpoint.state import TrainState
from destruct.config.ppo import KLConfig
from destruct.data.loader import LanguageLoader, language_orders
from destruct.data.mixture import Mixture, OutOfData
from destruct.drift import Probe, kl_from_initial, measure, probe_prompts
from destruct.engine.schedule import cosine_to_tenth
from destruct.errors import DestructError
from destruct.evaluation import Validation, validate
from destruct.minibatch import Minibatch, micro_batches
from destruct.ppo.kl import controlled_coef, next_coef
from destruct.ppo.update import UpdateStats, kl_to_reference, ppo_update
from destruct.prompting import continue_prompts
from destruct.recording import feedback_per_source, record_prompts, record_round, record_update, record_validation
from destruct.rollout.generate import generate
from destruct.rollout.packing import pack
from destruct.rollout.per_position import draw_everywhere
from destruct.rollout.score import score, with_advantages
from destruct.run import Run
from destruct.warmup import cross_entropy_step, value_pass

VALUE_DRAW = -3
"""The address of the first value batch's random numbers; the probe and the user's prompts have -1 and -2."""


def train(run: Run) -> TrainState:
    """Warm up, then make the planned updates; each epoch ends with a validation and a checkpoint."""
    begun = run.state.update
    try:
        make_updates(run)
    except OutOfData as end:
        end_early(run, end.names, begun)
    if "after" not in run.state.validation:  # resumed before any validation, by a plan that ends here
        evaluate_update(run)
    return run.state


def make_updates(run: Run) -> None:
    """The warm-up, if it is to come, and the planned updates.  Raises OutOfData where a batch cannot be filled."""
    if run.state.update == 0:
        warm_up(run)
    with run.screen.phase("ppo", run.updates, done=run.state.update) as progress:
        while run.state.update < run.updates:
            progress.advance(one_update(run))


def end_early(run: Run, exhausted: list[str], begun: int) -> None:
    """Validate and save where the data ended, before the planned updates were made.

    Args:
        begun: updates that were made before a resume: where none was added, the checkpoint is the one it came from.

    Raises:
        DestructError: it ended before the first of them.
    """
    if run.state.update == 0:
        raise DestructError(
            f"the sources {', '.join(exhausted)} are exhausted before the first update",
            "give them more text, raise max_epochs, set on_exhausted: repeat, or make rollout.batch_size smaller",
        )
    run.screen.say(f"{', '.join(exhausted)} exhausted: no further batch, the run ends after update {run.state.update}")
    if run.state.update == begun:
        return
    run.state.update -= 1  # what is due now is due in the last update
    epoch_ended = run.is_due(run.updates_per_epoch)
    best = not (epoch_ended or run.is_due(run.config.run.evaluate_every)) and evaluate_update(run)
    run.state.update += 1
    if not epoch_ended:
        run.save(best)


def one_update(run: Run) -> str:
    """Round if it is due, rollouts, PPO, the KL constraint; returns a line for the screen."""
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
    line = record_update(run, batches, stats, rewards, kl, beta)
    epoch_ends = run.is_due(run.updates_per_epoch)
    best = (epoch_ends or run.is_due(config.run.evaluate_every)) and evaluate_update(run)
    save = best or epoch_ends or run.is_due(config.run.checkpoint_every)
    state.update += 1
    if save:
        with watch("checkpoint"):
            run.save(best)
    return line


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


def pack_and_score(run: Run, rollouts: RolloutBatch) -> list[Minibatch[ScoredBatch]]:
    """Pack once, then score on exactly the micro-batches that the update will use."""
    order = torch.Generator().manual_seed(run.key("packing", rollouts.prompts.draw))
    shuffled = torch.randperm(len(rollouts.responses), generator=order)
    networks, settings = run.networks, run.score_settings()
    minibatches = run.config.ppo.minibatches
    packed = pack(rollouts, shuffled, minibatches, run.policy.accumulation, run.topology, settings.ptx)
    return [
        score(minibatch, networks.policy, networks.reference, networks.value, settings)
        for minibatch in run.reward(packed, run.topology)
    ]


def optimize(run: Run, batches: list[Minibatch[TrainBatch]]) -> UpdateStats:
    """The PPO epochs of one update, with beta and the learning rates as they stand now."""
    state, coefficients = run.state, run.coefficients()
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


def evaluate_update(run: Run) -> bool:
    """Validate in PPO; True when the mean is below that of every checkpoint so far (nan never is)."""
    validation = evaluate(run, "ppo")
    run.state.validation["after"] = validation.as_summary()
    return validation.mean < run.state.best_loss


def warm_up(run: Run) -> None:
    """Cross-entropy for the policy, then Monte-Carlo returns for the value network; the weights stay at the prior."""
    warmup, ppo, prior = run.config.warmup, run.config.ppo, run.curriculum.weights
    run.state.validation["before"] = evaluate(run, "before").as_summary()
    # Whole windows of several documents each, in an order of their own: of the pieces none is drawn yet.
    orders = language_orders(run.names, run.inputs.language, run.config.run.seed)
    language, loader = Mixture(orders), LanguageLoader(run.inputs.language, orders)
    with run.screen.phase("warm-up", warmup.lm_updates) as progress:
        for step in range(warmup.lm_updates):
            windows = loader.read(language.draw(run.config.rollout.batch_size, prior))
            run.state.tokens += windows.tokens.numel()
            lr = cosine_to_tenth(warmup.lm_lr, step, warmup.lm_updates)
            loss, stepped = cross_entropy_step(run.policy, windows.to(run.topology.device), lr, run.topology)
            run.state.skipped += not stepped
            run.mark_first_step()
            run.log("warmup", step, {"warmup/lm_loss": loss})
            progress.advance(f"loss {loss:.3f}")
    loader.close()
    for copy in run.networks.copies.values():
        copy.refresh(run.policy)
    # What is drawn before PPO counts in no epoch, and its random numbers have addresses of their own.
    pieces = run.mixture.afresh()
    with run.screen.phase("value", warmup.value_updates) as progress:
        for step in range(warmup.value_updates):
            prompts = replace(read_pieces(run, pieces, prior), draw=VALUE_DRAW - step)
            scored = pack_and_score(run, roll_out(run, prompts))
            # lam = 1: Monte-Carlo returns, as a value network that knows nothing cannot bootstrap.
            batches = with_advantages(scored, run.config.gamma, 1.0, run.topology)
            loss, skipped = value_pass(run.value, batches, ppo.value_clip_range, ppo.value_lr, run.topology)
            run.state.skipped += skipped
            run.mark_first_step()
            run.log("value_warmup", step, {"warmup/value_loss": loss})
            progress.advance(f"loss {loss:.4f}")
    # Where the policy was not trained, it is what it was before.
    same = run.state.validation["before"]
    run.state.validation["after_warmup"] = evaluate(run, "after_warmup").as_summary() if warmup.lm_updates else same
    begin_ppo(run)
    run.watch.take()  # the first update's seconds are its own


def begin_ppo(run: Run) -> None:
    """Keep what the initial model says after some held-out prompts, to measure the drift from it."""
    prompts = probe_prompts(run.inputs.held_out_prompts, run.topology.world_size, run.topology.device)
    rollouts = sample(run, prompts)
    temperature = run.config.rollout.temperature
    run.probe = Probe(rollouts, measure(run.policy, rollouts, temperature, run.topology), temperature)
    run.state.probe = run.probe.state_dict()
