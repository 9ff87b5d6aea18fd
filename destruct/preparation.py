"""Before PPO: the policy learns to speak, the value network not to mislead; every step of it can be resumed."""

from contextlib import closing
from dataclasses import replace
from functools import partial

from destruct.data.loader import LanguageLoader, language_orders
from destruct.data.mixture import Mixture
from destruct.drift import Probe, measure, probe_prompts
from destruct.engine.schedule import cosine_to_tenth
from destruct.heartbeat import HEART
from destruct.rollout.score import with_advantages
from destruct.run import Run
from destruct.steps import evaluate, heed_skips, pack_and_score, read_pieces, roll_out, sample
from destruct.warmup import cross_entropy_step, value_pass

VALUE_DRAW = -3
"""The address of the first value batch's random numbers; the probe and the user's prompts have -1 and -2."""


def warm_up(run: Run) -> None:
    """Cross-entropy for the policy, then Monte-Carlo returns for the value network; the weights stay at the prior."""
    state = run.state
    if "before" not in state.validation:
        state.validation["before"] = evaluate(run, "before").as_summary()
    with HEART.during("policy warm-up"):
        teach_language(run)
    with HEART.during("value warm-up"):
        teach_value(run)
    # Where the policy was not trained, it is what it was before.
    same = state.validation["before"]
    state.validation["after_warmup"] = evaluate(run, "after_warmup").as_summary() if state.lm_steps else same
    begin_ppo(run)
    run.watch.take()  # the first update's seconds are its own
    run.worked_alone = HEART.alone_work


def teach_language(run: Run) -> None:
    """The steps of cross-entropy that are to come; then the policy's copies are what it is."""
    state, warmup, prior = run.state, run.config.warmup, run.curriculum.weights
    # Whole windows of several documents each, in an order of their own: of the pieces none is drawn yet.
    orders = language_orders(run.names, run.inputs.language, run.config.run.seed)
    language, loader = Mixture(orders), LanguageLoader(run.inputs.language, orders)
    if state.lm_steps > 0:
        language.load_state_dict(state.language_mixture)
    with closing(loader), run.screen.phase("warm-up", warmup.lm_updates, done=state.lm_steps) as progress:
        while state.lm_steps < warmup.lm_updates:
            run.pause()
            step = state.lm_steps
            drawn = language.draw(run.config.rollout.batch_size, prior)
            windows = run.topology.together(partial(loader.read, drawn))
            state.tokens += windows.tokens.numel()
            lr = cosine_to_tenth(warmup.lm_lr, step, warmup.lm_updates)
            loss, stepped = cross_entropy_step(run.policy, windows.to(run.topology.device), lr, run.topology)
            state.skipped += not stepped
            heed_skips(run, int(not stepped), ["the policy's loss or gradient"])
            run.mark_first_step()
            run.log("warmup", step, {"warmup/lm_loss": loss})
            progress.advance(f"loss {loss:.3f}")
            state.lm_steps, state.language_mixture = step + 1, language.state_dict()
            run.save_if_due(state.lm_steps)
    for copy in run.networks.copies.values():
        copy.refresh(run.policy)


def teach_value(run: Run) -> None:
    """The steps of the value network that are to come."""
    state, warmup, prior = run.state, run.config.warmup, run.curriculum.weights
    # What is drawn before PPO counts in no epoch, and its random numbers have addresses of their own.
    pieces = run.mixture.afresh()
    if state.value_steps > 0:
        run.topology.together(lambda: pieces.load_state_dict(state.value_mixture))
    with run.screen.phase("value", warmup.value_updates, done=state.value_steps) as progress:
        while state.value_steps < warmup.value_updates:
            run.pause()
            step = state.value_steps
            prompts = replace(read_pieces(run, pieces, prior), draw=VALUE_DRAW - step)
            scored = pack_and_score(run, roll_out(run, prompts))
            # lam = 1: Monte-Carlo returns, as a value network that knows nothing cannot bootstrap.
            batches = with_advantages(scored, run.config.gamma, 1.0, run.topology)
            ppo = run.config.ppo
            loss, skipped = value_pass(run.value, batches, ppo.value_clip_range, ppo.value_lr, run.topology)
            state.skipped += skipped
            heed_skips(run, skipped, ["the value network's loss or gradient"])
            run.mark_first_step()
            run.log("value_warmup", step, {"warmup/value_loss": loss})
            progress.advance(f"loss {loss:.4f}")
            state.value_steps, state.value_mixture = step + 1, pieces.state_dict()
            run.save_if_due(state.lm_steps + state.value_steps)


def begin_ppo(run: Run) -> None:
    """Keep what the initial model says after some held-out prompts, to measure the drift from it."""
    prompts = probe_prompts(run.inputs.held_out_prompts, run.topology.world_size, run.topology.device)
    rollouts = sample(run, prompts)
    temperature = run.config.rollout.temperature
    run.probe = Probe(rollouts, measure(run.policy, rollouts, temperature, run.topology), temperature)
    run.state.probe = run.probe.state_dict()
