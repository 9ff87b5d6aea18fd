"""What the loop writes down: figures per source, figures per update, and samples."""

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from destruct.batch import ScoredBatch, TrainBatch
from destruct.curriculum.estimates import Estimates, as_columns
from destruct.curriculum.feedback import COLUMNS
from destruct.curriculum.strategies import Strategy
from destruct.engine.topology import Topology
from destruct.evaluation import Validation
from destruct.minibatch import Minibatch, micro_batches
from destruct.ppo.histograms import ADVANTAGE_EDGES, BinCounts, Histogram
from destruct.ppo.kl import k1
from destruct.ppo.update import UpdateStats
from destruct.run import Run
from destruct.summarizing import mean_over_sources, peak_rss_mib
from destruct.tracking.live import Standing
from destruct.tracking.sinks import Continuation, Sample

MOST_AVERAGED = 100
"""Updates over which the screen averages rewards, at either end."""

_STATS = tuple(name for name in UpdateStats.__dataclass_fields__ if name not in ("ratios", "not_finite"))


def record_round(run: Run, estimates: Estimates) -> None:
    """Log what a round learnt about each source, and the weights it set."""
    curriculum, strategy = run.curriculum, run.curriculum.strategy
    per_source = {name: x for name, x in as_columns(estimates).items() if isinstance(x, np.ndarray)}
    per_source |= {"weight": run.mixture.shares(curriculum.weights), "target": strategy.target}
    values = {
        "curriculum/round": float(estimates.round_index),
        "curriculum/batches": float(estimates.batches),
        "curriculum/held": float(strategy.held),
        "curriculum/stability_margin": strategy.stability_margin,
        "curriculum/panel_size": float(curriculum.panel_size),
        "curriculum/probe_share": curriculum.probe_share,
    }
    for figure, array in per_source.items():
        # Infinite errors, where nothing is known yet, are "not a number" in JSON and TensorBoard.
        finite = np.where(np.isfinite(array), array, np.nan)
        values |= {f"curriculum/{figure}/{name}": float(x) for name, x in zip(run.names, finite, strict=True)}
    run.log("ppo", run.state.update, values)
    if run.sinks is not None:
        run.sinks.text("curriculum/reasons", reasons_table(run.names, curriculum.weights, strategy), run.state.update)
    if curriculum.panel_size < curriculum.panels.size and estimates.round_index == 1:
        run.screen.say(
            f"panels of {curriculum.panel_size} windows instead of {curriculum.panels.size}: more would be over "
            f"curriculum.probe_budget={curriculum.panels.budget:g} of the training tokens"
        )


def reasons_table(names: list[str], weights: np.ndarray, strategy: Strategy) -> str:
    """Each source's weight and the reason for it, as a table in Markdown."""
    rows = [f"| {name} | {w:.3f} | {why} |" for name, w, why in zip(names, weights, strategy.reasons(), strict=True)]
    return "\n".join(["| source | weight | reason |", "|---|--:|---|", *rows])


def record_validation(run: Run, phase: str, validation: Validation) -> None:
    """Log the held-out loss of every source; `phase` is before, after_warmup or ppo."""
    values = {f"validation/nats_per_token/{name}": x for name, x in validation.nats_per_token.items()}
    values |= {f"validation/bits_per_byte/{name}": x for name, x in validation.bits_per_byte.items()}
    if run.probe is not None:
        values["kl/from_initial"] = run.state.kl_from_initial
    run.log(phase, _step(run, phase), values | {"validation/mean": validation.mean})


def _step(run: Run, phase: str) -> int:
    return run.config.warmup.lm_updates if phase == "after_warmup" else run.state.update


def record_prompts(run: Run, phase: str, said: list[list[int]]) -> None:
    """Log the continuations of the user's prompts, as tokens."""
    if run.sinks is None:
        return
    for prompt, tokens in zip(run.settings.prompts, said, strict=True):
        continuation = Continuation(prompt.topic, prompt.text, run.tokenizer.decode(tokens))
        run.sinks.continuation(phase, _step(run, phase), continuation)


def record_update(
    run: Run, minibatches: list[Minibatch[TrainBatch]], stats: UpdateStats, rewards: Tensor, kl: float, beta: float
) -> Standing:
    """Log one update and its samples; returns what the screen shows of it.  All ranks call it: it sums over them.

    Args:
        rewards: (S, 2), the first columns of `feedback_per_source`.
        kl: k3(policy after the update || reference), nats per token.
        beta: the KL coefficient that the update used.
    """
    state, topology = run.state, run.topology
    trains = micro_batches(minibatches)
    scored = [train.scored for train in trains]
    total, told = rewards.sum(0).tolist()
    reward = total / told if told else math.nan
    count = run.config.rollout.batch_size
    facts = {name: getattr(stats, name) for name in _STATS}
    if run.config.ppo.dual_clip is None:
        del facts["dual_clip_fraction"]
    values = {f"ppo/{name}": float(x) for name, x in facts.items()}
    values |= _rollout_figures(run, scored, count)
    values |= {
        f"rollout/reward/{name}": total / n for name, (total, n) in zip(run.names, rewards.tolist(), strict=True) if n
    }
    watch = run.watch.take()
    drawn = topology.sum(torch.tensor(sum(batch.rollouts.prompts.real_tokens for batch in scored))).item()
    tokens = drawn + values["rollout/response_tokens"] * count
    values |= {
        "rollout/reward": reward,
        "rollout/filled": drawn / (count * scored[0].rollouts.tokens.shape[1]),
        "kl/to_reference": kl,
        "kl/coef": beta,
        "kl/breaches": float(state.breaches),
        "ppo/explained_variance": explained_variance(trains, topology),
        "ppo/policy_lr": run.update_settings.policy_lr(state.optimizer_steps - stats.steps),
        "ppo/value_lr": run.update_settings.value_lr(state.optimizer_steps - stats.steps),
        "time/tokens_per_s": tokens / sum(watch.values()),
        "memory/peak_rss_mib": peak_rss_mib(topology),
        **{f"time/{phase}": seconds for phase, seconds in watch.items()},
    }
    if run.is_due(run.config.guard.compare_every):
        values["time/slowest_rank"] = run.compare_speeds()
    if topology.device.type == "cuda":
        values["memory/peak_gpu_mib"] = peak_gpu_mib(topology)
    run.log("ppo", state.update, values)
    _record_histograms(run, trains, stats.ratios)
    _record_samples(run, scored)
    few = min(MOST_AVERAGED, max(1, len(state.rewards) // 10))
    return Standing(
        reward=reward,
        reward_first=mean_over_sources(state.rewards[:few]),
        reward_last=mean_over_sources(state.rewards[-few:]),
        kl=kl,
        kl_bound=run.config.kl.bound,
        ptx_loss=stats.ptx_loss,
        entropy=stats.entropy,
        tokens_per_s=values["time/tokens_per_s"],
        weights=dict(zip(run.names, run.mixture.shares(run.curriculum.weights).tolist(), strict=True)),
    )


def with_validation(run: Run, standing: Standing) -> Standing:
    """The same with the newest validation, and the best one."""
    state = run.state
    newest = state.validation.get("after") or state.validation.get("after_warmup")
    if newest is None:
        return standing
    best = None if state.best_update is None else state.best_loss
    return replace(standing, validation=newest["mean"], best=best, best_update=state.best_update)


def feedback_per_source(trains: list[TrainBatch], sources: int, topology: Topology) -> Tensor:
    """Sums of `curriculum.feedback.COLUMNS` over the rollouts of each source and over all ranks, which all call it:
    (S, 7) float64, of which the first two columns are the sum of scores (reward units) and the number of rollouts.
    A rollout whose score or advantage is not finite counts in none."""
    table = torch.zeros(sources, len(COLUMNS), dtype=torch.float64, device=topology.device)
    for train in trains:
        score, mask = train.scored.rewarded.score.double(), train.scored.rollouts.mask
        size = (train.advantages.double().abs() * mask).sum(1) / mask.sum(1).clamp(min=1)
        powers = torch.stack([score, torch.ones_like(score), score**2, score**3, score**4, size, size**2], 1)
        fine = torch.isfinite(powers).all(1)
        table.index_add_(0, train.scored.rollouts.prompts.source[fine], powers[fine])
    return topology.sum(table)


def _rollout_figures(run: Run, scored: list[ScoredBatch], count: float) -> dict[str, float]:
    sums = torch.zeros(3 + len(run.reward.names), dtype=torch.float64, device=run.topology.device)
    for batch in scored:
        mask = batch.rollouts.mask
        sampled = k1(batch.reference_logprobs - batch.old_logprobs)[mask].double().sum()
        sums[:3] += torch.stack([sampled, mask.sum().double(), batch.rollouts.stopped.sum().double()])
        sums[3:] += batch.rewarded.terms.double().sum(0)
    kl, tokens, stopped, *terms = run.topology.sum(sums).tolist()
    figures = {
        "kl/sampled": kl / tokens,
        "rollout/response_tokens": tokens / count,
        "rollout/eos_rate": stopped / count,
    }
    return figures | {
        f"rollout/term/{name}": total / count for name, total in zip(run.reward.names, terms, strict=True)
    }


def explained_variance(trains: list[TrainBatch], topology: Topology) -> float:
    """1 - var(returns - old values) / var(returns) over all response tokens; nan when the returns do not vary.

    All ranks call it.
    """
    sums = torch.zeros(5, dtype=torch.float64, device=topology.device)
    for train in trains:
        mask = train.scored.rollouts.mask
        returns = train.returns[mask].double()
        errors = returns - train.scored.old_values[mask].double()
        terms = [mask.sum().double(), returns.sum(), returns.square().sum(), errors.sum(), errors.square().sum()]
        sums += torch.stack(terms)
    n, r, rr, e, ee = topology.sum(sums).tolist()
    variance = rr / n - (r / n) ** 2
    # Below the rounding of the difference the returns do not vary.
    return 1 - (ee / n - (e / n) ** 2) / variance if variance > 1e-12 * rr / n else float("nan")


def _record_histograms(run: Run, trains: list[TrainBatch], ratios: Histogram) -> None:
    """Ratios and advantages of the update's response tokens, over all ranks, which all call it."""
    advantages = BinCounts(ADVANTAGE_EDGES, run.topology.device)
    for train in trains:
        advantages.add(train.advantages, train.scored.rollouts.mask)
    counts = tuple(run.topology.sum(advantages.counts).tolist())
    if run.sinks is not None:
        run.sinks.histogram("ppo/ratio", run.state.update, ratios)
        run.sinks.histogram("ppo/advantage", run.state.update, Histogram(ADVANTAGE_EDGES, counts))


def _record_samples(run: Run, scored: list[ScoredBatch]) -> None:
    """The first rank's first rollouts of the update, as text."""
    if run.sinks is None:
        return
    samples: list[Sample] = []
    for batch in scored:
        left = run.config.run.samples_per_update - len(samples)
        samples += _samples_of(run, batch, min(left, len(batch.rollouts.tokens)))
    run.sinks.samples(run.state.update, samples)


def _samples_of(run: Run, batch: ScoredBatch, count: int) -> list[Sample]:
    """The first rollouts of a micro-batch."""
    rollouts = batch.rollouts.select(torch.arange(count))
    texts = (rollouts.prompts.prompt_ids(), rollouts.response_ids(), rollouts.prompts.continuation_ids())
    sampled = k1(batch.reference_logprobs - batch.old_logprobs) * batch.rollouts.mask
    kl = sampled.double().sum(1) / batch.rollouts.lengths.clamp(min=1)
    return [
        Sample(
            source=run.names[int(rollouts.prompts.source[row])],
            prompt=run.tokenizer.decode(prompt),
            response=run.tokenizer.decode(response),
            continuation=run.tokenizer.decode(continuation),
            stopped=bool(rollouts.stopped[row]),
            reward=batch.rewarded.score[row].item(),
            kl=kl[row].item(),
            terms=dict(zip(run.reward.names, batch.rewarded.terms[row].tolist(), strict=True)),
        )
        for row, (prompt, response, continuation) in enumerate(zip(*texts, strict=True))
    ]


def peak_gpu_mib(topology: Topology) -> float:
    """Peak memory that torch has taken of the fullest GPU, MiB.  All ranks call it."""
    mine = torch.cuda.max_memory_reserved(topology.device) / 2**20
    return topology.max(torch.tensor([mine], dtype=torch.float64)).item()
