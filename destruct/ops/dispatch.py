"""The implementations of the fused ops, by name."""

from collections.abc import Callable
from dataclasses import dataclass

from destruct.ops import chunked, reference
from destruct.ops.rows import LossOutput, ScoreOutput


@dataclass(frozen=True, slots=True)
class Implementation:
    """One implementation; both ops give bitwise equal logprobs on the same rows."""

    policy_loss: Callable[..., LossOutput]  # (hidden (N, H), weight (V, H), LossRows, LossCoefficients)
    score: Callable[..., ScoreOutput]  # (hidden (N, H), weight (V, H), ScoreRows)


def implementation(name: str) -> Implementation:
    """The implementation called `name`.

    Raises:
        ValueError: naming the known ones.
    """
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"implementation is {name!r}; expected one of {tuple(IMPLEMENTATIONS)}")
    return IMPLEMENTATIONS[name]


IMPLEMENTATIONS = {
    "reference": Implementation(reference.policy_loss, reference.score),
    "chunked": Implementation(chunked.policy_loss, chunked.score),
}
