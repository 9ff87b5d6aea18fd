"""The update: E epochs of clipped policy and value optimisation over packed minibatches (arXiv:1707.06347)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from destruct.batch import TrainBatch
from destruct.engine.base import TrainEngine
from destruct.engine.schedule import Schedule
from destruct.engine.topology import Topology
from destruct.minibatch import Minibatch
from destruct.ops.rows import SUM_NAMES, LossCoefficients, LossOutput, LossRows, PolicyLoss, ReferenceStates
from destruct.ppo.distance import kl_from_old
from destruct.ppo.histograms import LOG_RATIO_EDGES, BinCounts, Histogram
from destruct.ppo.kl import LOG_RATIO_CLAMP
from destruct.ppo.loss import clipped_value_loss
from destruct.rollout.score import PolicyInputs, policy_inputs


@dataclass(frozen=True, slots=True)
class UpdateSettings:
    """The numbers that an update depends on."""

    epochs: int
    temperature: float
    ptx_coef: float
    value_clip_range: float
    early_stop_kl: float | None  # nats per token
    policy_lr: Schedule
    value_lr: Schedule


@dataclass(frozen=True, slots=True)
class UpdateStats:
    """What one update did, over all ranks.  KL in nats per token; norms before clipping, mean over the steps."""

    policy_loss: float
    value_loss: float
    ptx_loss: float  # nats per continuation token; 0 for a step without any
    entropy: float  # nats per token
    approx_kl: float  # k3(old || new), mean over all minibatch passes
    approx_kl_k1: float  # the same by k1
    reference_kl: float  # k3(policy || reference), mean over all minibatch passes
    reference_kl_k1: float  # the same by k1
    reference_kl_exact: float  # KL over the whole vocabulary, as the loss has it; 0 where it has none
    first_ratio_error: float  # max |log ratio| of the first minibatch: 0 when scoring and training agree
    ratio_mean: float
    ratio_min: float
    ratio_max: float
    ratios: Histogram  # of response tokens, over the passes that were followed by a step
    clip_fraction: float
    dual_clip_fraction: float  # the part of clip_fraction that the dual clip cut; 0 without one
    policy_grad_norm: float
    value_grad_norm: float
    steps: int  # optimizer steps taken by each network
    steps_planned: int
    skipped: int  # steps neither network took because a loss, a ratio, a KL or a gradient was not finite
    epochs: int  # passes made before the early stop
    not_finite: tuple[str, ...]  # what was not finite in the skipped ones, and on which ranks the losses were not


class Tally:
    """Sums over the micro-batches of one optimizer step, added up over ranks once."""

    def __init__(self, device: torch.device):
        self.sums = torch.zeros(len(SUM_NAMES) + 2, dtype=torch.float64, device=device)
        self.extremes = torch.full((2,), -math.inf, dtype=torch.float64, device=device)
        self.log_ratios = BinCounts(LOG_RATIO_EDGES, device)

    def add_policy(self, output: LossOutput, rows: LossRows) -> None:
        self.sums[: len(SUM_NAMES)] += output.sums
        self.sums[-1] += (~torch.isfinite(output.loss.detach())).double()
        self.extremes = torch.maximum(self.extremes, output.extremes.double())
        self.log_ratios.add(output.logprobs.detach() - rows.old_logprobs, rows.response)

    def add_value(self, loss: Tensor) -> None:
        self.sums[-2] += loss.detach().double()
        self.sums[-1] += (~torch.isfinite(loss)).double()

    def ranks_at_fault(self, topology: Topology) -> list[int]:
        """Those whose own loss was not finite."""
        return [rank for rank, bad in enumerate(topology.from_all(bool(self.sums[-1]))) if bad]

    def over_ranks(self, topology: Topology) -> tuple[dict[str, float], list[float]]:
        """Sums by name (with `value_loss` and `not_finite`), largest log ratio and largest -log ratio."""
        values = topology.sum(self.sums).tolist()
        names = (*SUM_NAMES, "value_loss", "not_finite")
        return dict(zip(names, values, strict=True)), topology.max(self.extremes).tolist()


def ppo_update(
    policy: TrainEngine,
    value: TrainEngine,
    minibatches: list[Minibatch[TrainBatch]],
    coefficients: LossCoefficients,
    settings: UpdateSettings,
    first_step: int,
    order: torch.Generator,
    topology: Topology,
    reference_head: Tensor | None = None,
) -> UpdateStats:
    """Train both networks on one update's rollouts.

    Args:
        minibatches: this rank's part of each minibatch.
        coefficients: of the policy's loss, beta as it stands now.
        settings: of the update.
        first_step: optimizer steps taken before this update, for the learning rates.
        order: shuffles the minibatches of each epoch; in the same state on every rank.
        reference_head: (V, H) the reference's head in full, where the loss has the exact KL to it.

    Returns:
        Means over all minibatch passes and ranks.
    """
    log: list[dict[str, float]] = []
    first_ratio_error: float | None = None
    not_finite: dict[str, None] = {}
    skipped = epochs = 0
    log_ratios = torch.zeros(len(LOG_RATIO_EDGES) - 1, dtype=torch.int64, device=topology.device)
    while epochs < settings.epochs and not _moved_too_far(policy, minibatches, settings, epochs, topology):
        epochs += 1
        for m in torch.randperm(len(minibatches), generator=order).tolist():
            tally = accumulate(policy, value, minibatches[m], coefficients, settings, topology.device, reference_head)
            sums, (rise, fall) = tally.over_ranks(topology)
            facts = _means(sums, minibatches[m]) | {"ratio_max": _ratio(rise), "ratio_min": _ratio(-fall)}
            first_ratio_error = max(rise, fall) if first_ratio_error is None else first_ratio_error
            facts |= {"policy_grad_norm": policy.grad_norm(), "value_grad_norm": value.grad_norm()}
            wrong = [name for name, fact in facts.items() if not math.isfinite(fact)]
            if wrong or sums["not_finite"]:
                policy.drop_gradients()
                value.drop_gradients()
                skipped += 1
                ranks = tally.ranks_at_fault(topology)
                not_finite |= dict.fromkeys([*wrong, *(f"the loss of rank {rank}" for rank in ranks)])
            else:
                step = first_step + len(log)
                policy.step(settings.policy_lr(step))
                value.step(settings.value_lr(step))
                log.append(facts)
                log_ratios += tally.log_ratios.counts
    assert first_ratio_error is not None, "an update has at least one epoch and one minibatch"
    ratios = Histogram(tuple(map(math.exp, LOG_RATIO_EDGES)), tuple(topology.sum(log_ratios).tolist()))
    planned = settings.epochs * len(minibatches)
    return _stats(log, first_ratio_error, ratios, skipped, epochs, planned, tuple(not_finite))


def _moved_too_far(
    policy: TrainEngine,
    minibatches: list[Minibatch[TrainBatch]],
    settings: UpdateSettings,
    epochs: int,
    topology: Topology,
) -> bool:
    """True when k3(old || new) has passed the early stop's bound; measured between epochs by a pass of its own."""
    if settings.early_stop_kl is None or epochs == 0:
        return False
    scored = [minibatch.map(lambda train: train.scored) for minibatch in minibatches]
    # `not <=`: nan has moved too far.
    return not kl_from_old(policy, scored, settings.temperature, topology) <= settings.early_stop_kl


def accumulate(
    policy: TrainEngine,
    value: TrainEngine,
    minibatch: Minibatch[TrainBatch],
    coefficients: LossCoefficients,
    settings: UpdateSettings,
    device: torch.device,
    reference_head: Tensor | None = None,
) -> Tally:
    """Forward and backward of both networks on each micro-batch of one minibatch; reference_head as in `ppo_update`."""
    tally = Tally(device)
    for train in minibatch.micro_batches:
        inputs, rows = loss_rows(train, minibatch, settings.temperature, settings.ptx_coef)
        states = train.scored.reference_states
        reference = None
        if coefficients.exact_kl:
            assert states is not None and reference_head is not None, "scored without its states"
            reference = ReferenceStates(states, reference_head)
        output = policy(inputs.tokens, inputs.rows, PolicyLoss(rows, coefficients, reference))
        policy.backward(output.loss)
        tally.add_policy(output, rows)
        loss = value_loss(value, train, minibatch.response_tokens, settings.value_clip_range)
        value.backward(loss)
        tally.add_value(loss)
    return tally


def loss_rows(
    train: TrainBatch, minibatch: Minibatch[TrainBatch], temperature: float, ptx_coef: float
) -> tuple[PolicyInputs, LossRows]:
    """A micro-batch laid out exactly as in scoring, and its rows of the fused loss (N,).

    The weights divide by the token counts of the whole minibatch on all ranks; a count may be 0, and so are its rows.
    """
    scored, mask = train.scored, train.scored.rollouts.mask
    inputs = policy_inputs(scored.rollouts, temperature, ptx=ptx_coef > 0)
    response = inputs.is_response

    def flat(values: Tensor) -> Tensor:
        column = torch.zeros(len(response), device=values.device)
        column[response] = values[mask]
        return column

    rows = LossRows(
        targets=inputs.targets,
        temperature=inputs.temperature,
        old_logprobs=flat(scored.old_logprobs),
        reference_logprobs=flat(scored.reference_logprobs),
        advantages=flat(train.advantages),
        policy_weight=response / max(1, minibatch.response_tokens),
        ptx_weight=~response * (ptx_coef / max(1, minibatch.continuation_tokens)),
    )
    return inputs, rows


def value_loss(value: TrainEngine, train: TrainBatch, response_tokens: int, clip_range: float) -> Tensor:
    """The clipped value loss of a micro-batch, reward units squared: its sum over tokens divided by the minibatch's
    response tokens."""
    mask = train.scored.rollouts.mask
    inputs = policy_inputs(train.scored.rollouts, temperature=1.0, ptx=False)
    values = value(inputs.tokens, inputs.rows)
    per_token = clipped_value_loss(values, train.scored.old_values[mask], train.returns[mask], clip_range)
    return per_token.sum() / max(1, response_tokens)


def _means(sums: dict[str, float], minibatch: Minibatch[TrainBatch]) -> dict[str, float]:
    """Per response token; PTX per continuation token; the value loss is normalised already."""
    counts = {"ptx_nll": minibatch.continuation_tokens, "value_loss": 1, "not_finite": 1}
    return {name: total / max(1, counts.get(name, minibatch.response_tokens)) for name, total in sums.items()}


def _ratio(log_ratio: float) -> float:
    """As the loss has it, clamped; nan stays nan."""
    return math.exp(min(max(log_ratio, -LOG_RATIO_CLAMP), LOG_RATIO_CLAMP)) if log_ratio == log_ratio else log_ratio


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _stats(
    log: list[dict[str, float]],
    first_ratio_error: float,
    ratios: Histogram,
    skipped: int,
    epochs: int,
    planned: int,
    not_finite: tuple[str, ...],
) -> UpdateStats:
    def mean(name: str) -> float:
        return _mean([facts[name] for facts in log])

    return UpdateStats(
        policy_loss=mean("policy_loss"),
        value_loss=mean("value_loss"),
        ptx_loss=mean("ptx_nll"),
        entropy=mean("entropy"),
        approx_kl=mean("kl_old_k3"),
        approx_kl_k1=mean("kl_old_k1"),
        reference_kl=mean("kl_reference_k3"),
        reference_kl_k1=mean("kl_reference_k1"),
        reference_kl_exact=mean("kl_reference_exact"),
        first_ratio_error=first_ratio_error,
        ratio_mean=mean("ratio"),
        ratio_min=min((facts["ratio_min"] for facts in log), default=float("nan")),
        ratio_max=max((facts["ratio_max"] for facts in log), default=float("nan")),
        ratios=ratios,
        clip_fraction=mean("clip_low") + mean("clip_high") + mean("clip_dual"),
        dual_clip_fraction=mean("clip_dual"),
        policy_grad_norm=mean("policy_grad_norm"),
        value_grad_norm=mean("value_grad_norm"),
        steps=len(log),
        steps_planned=planned,
        skipped=skipped,
        epochs=epochs,
        not_finite=not_finite,
    )
