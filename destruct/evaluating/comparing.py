"""Compares two models on what both were measured on: the first less the second."""

import math
from dataclasses import dataclass

from destruct.evaluating.estimates import Estimate, mean_of, per_unit, unpaired
from destruct.evaluating.measuring import Loss, Measured, Speech


@dataclass(frozen=True, slots=True)
class SourceDifference:
    """How far two models are apart on one source."""

    paired: bool  # both read the same windows
    nats_per_token: Estimate | None  # None where their tokens are not the same
    bits_per_byte: Estimate


@dataclass(frozen=True, slots=True)
class Comparison:
    """The first model less the second: below 0 the first has the lower loss."""

    sources: dict[str, SourceDifference]
    mean: SourceDifference  # over the learnable sources, each of equal weight
    speech: dict[str, dict[str, Estimate]]  # source -> figure; of sources whose prompts were the same tokens


def compare(first: Measured, second: Measured) -> Comparison:
    """Differences with their errors: paired over windows where both models read the same tokens of a source.

    Models of other tokenizers have other windows of the same held-out text.  Their nats per token are of different
    tokens and are not compared; their bits per byte are, as if of independent samples, which overstates the error.
    """
    sources = {name: _of_source(loss, second.losses[name]) for name, loss in first.losses.items()}
    counted = [sources[name] for name in counting(first.losses)]
    nats = [each.nats_per_token for each in counted if each.nats_per_token is not None]
    over_all = SourceDifference(
        paired=all(each.paired for each in counted),
        nats_per_token=mean_of(nats) if len(nats) == len(counted) else None,
        bits_per_byte=mean_of([each.bits_per_byte for each in counted]),
    )
    speech = {
        name: _of_speech(said, second.speech[name])
        for name, said in first.speech.items()
        if said.digest == second.speech[name].digest
    }
    return Comparison(sources, over_all, speech)


def counting(losses: dict[str, Loss]) -> list[str]:
    """The sources that the mean is over: the learnable ones; all where none is."""
    return [name for name, loss in losses.items() if loss.learnable] or list(losses)


def _of_source(a: Loss, b: Loss) -> SourceDifference:
    if a.digest != b.digest:
        return SourceDifference(False, None, unpaired(a.bits_per_byte, b.bits_per_byte))
    apart = a.nats - b.nats
    return SourceDifference(True, per_unit(apart, a.tokens), per_unit(apart / math.log(2), a.bytes))


def _of_speech(a: Speech, b: Speech) -> dict[str, Estimate]:
    return {name: figure.less(b.figures[name]) for name, figure in a.figures.items()}
