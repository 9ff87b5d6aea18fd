"""One optimizer step's rollouts, in the micro-batches of a rank."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

BatchT = TypeVar("BatchT")
OtherT = TypeVar("OtherT")

FORWARD_TOKENS = 4096
"""Of a forward without gradients that takes several micro-batches: products of so many rows are as fast as they get."""


@dataclass(frozen=True, slots=True)
class Minibatch(Generic[BatchT]):
    """One optimizer step's rollouts: this rank's micro-batches (as many as the accumulation; some may be empty)
    and the token counts of the whole minibatch on all ranks, by which every loss is normalised."""

    micro_batches: tuple[BatchT, ...]
    response_tokens: int
    continuation_tokens: int  # of the data; 0 where no rollout has a continuation
    padded_tokens: int  # most rollouts of a micro-batch on any rank times the longest of all

    def map(self, stage: Callable[[BatchT], OtherT]) -> Minibatch[OtherT]:
        """The minibatch after `stage` has been applied to each micro-batch."""
        return self._of(tuple(map(stage, self.micro_batches)))

    def map_together(self, stage: Callable[[tuple[BatchT, ...]], Iterable[OtherT]]) -> Minibatch[OtherT]:
        """The minibatch after `stage`, a forward without gradients, has been applied to several micro-batches at once,
        on every rank as often."""
        count, micro = together(self.padded_tokens), self.micro_batches
        groups = (micro[start : start + count] for start in range(0, len(micro), count))
        return self._of(tuple(result for group in groups for result in stage(group)))

    def _of(self, micro: tuple[OtherT, ...]) -> Minibatch[OtherT]:
        return Minibatch(micro, self.response_tokens, self.continuation_tokens, self.padded_tokens)


def together(padded_tokens: int) -> int:
    """Micro-batches of so many tokens that a forward without gradients takes at once."""
    return max(1, FORWARD_TOKENS // max(1, padded_tokens))


def micro_batches(minibatches: Iterable[Minibatch[BatchT]]) -> list[BatchT]:
    """All micro-batches of this rank, in order."""
    return [micro for minibatch in minibatches for micro in minibatch.micro_batches]
