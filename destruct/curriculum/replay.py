"""Recorded rounds through a strategy once more: the weights that it sets on them, and whether they are the log's.

Legend: S sources, R rounds; weights are shares (S,) of drawn tokens that sum to 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from destruct.curriculum.estimates import Floats
from destruct.curriculum.strategies import Strategy
from destruct.data.shares import shares_of_the_live
from destruct.tracking.rounds import RecordedRound

ROUNDING = 1e-9
"""Share by which weights may differ where another processor or another NumPy has rounded."""


@dataclass(frozen=True, slots=True, eq=False)
class Replay:
    """What a strategy made of R recorded rounds."""

    rounds: Sequence[RecordedRound]  # R of the same sources, oldest first
    weights: list[Floats]  # R of (S,), after each round; 0 of an exhausted source
    strategy: Strategy  # as it stands after the last

    @property
    def differences(self) -> Floats:
        """(R,) largest difference of a source's weight from the log's."""
        pairs = zip(self.weights, self.rounds, strict=True)
        return np.array([np.max(np.abs(weights - recorded.weights)) for weights, recorded in pairs])


def replay(rounds: Sequence[RecordedRound], strategy: Strategy) -> Replay:
    """Show a strategy these rounds, one after another.

    The shares are computed as `Mixture.shares` does, so that with the run's own strategy and dials they are the logged
    ones bit for bit.

    Args:
        rounds: R of the same sources, oldest first; at least one.
        strategy: over these sources, before any round.
    """
    weights = []
    for recorded in rounds:
        strategy.observe(recorded.estimates)
        set_now = strategy.weights()
        weights.append(shares_of_the_live(set_now / set_now.sum(), recorded.estimates.exhausted == 0))
    return Replay(rounds, weights, strategy)


def of_the_same_sources(rounds: Sequence[RecordedRound]) -> list[RecordedRound]:
    """The last rounds that are all of the newest one's sources.

    Where sources came or went in between, the run went on with the weights that it had.  A replay cannot: the priors of
    the sources before are not in the log.  It begins anew with the first of these rounds.
    """
    first = len(rounds)
    while first and rounds[first - 1].names == rounds[-1].names:
        first -= 1
    return list(rounds[first:])


def verdict(own: Replay) -> tuple[bool, str]:
    """Whether the replay of the run's own strategy sets the log's weights, and in a line how they compare."""
    differences, indices = own.differences, [recorded.index for recorded in own.rounds]
    worst = float(np.max(differences))
    if worst == 0:
        return True, f"the weights of all {len(indices)} rounds are those of the log, bit for bit"
    if worst <= ROUNDING:
        return True, f"the weights are those of the log up to {worst:.1g}: another processor or NumPy has rounded"
    missing = sorted(set(range(indices[0], indices[-1])) - set(indices))
    if indices[0] > 0:
        why = "it does not begin where the run did"
    elif missing:
        why = f"{len(missing)} rounds are missing from the log, the first is {missing[0]}"
    else:
        why = "the run was resumed with other dials, or another version of the code made it"
    first = indices[int(np.argmax(differences > ROUNDING))]
    return False, f"NOT the weights of the log from round {first} on, by up to {worst:.2g}: {why}"


def late_beginning(rounds: Sequence[RecordedRound], rounds_before: int) -> str | None:
    """A line that says why a replay of these rounds does not begin with the run's first one; None where it does.

    Args:
        rounds_before: recorded rounds before them, of other sources.
    """
    first = rounds[0].index
    if rounds_before:
        return (
            f"sources came or went before round {first}: the replay begins anew there, at the prior, where the run "
            "went on with its weights; tokens are counted from there"
        )
    if first > 0:
        return f"the log begins with round {first}: the run went on from another one's checkpoint, or lines were lost"
    return None
