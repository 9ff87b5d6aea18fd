"""What is looked at so that no run goes on where it should not: ranks that drift apart, a state that is broken."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from destruct.checkpoint.identity import leaves
from destruct.config.settings import Settings
from destruct.engine.base import FrozenEngine, TrainEngine
from destruct.engine.topology import Topology
from destruct.errors import DestructError
from destruct.heartbeat import Work

SLOWER = 1.5
"""Times the work of the others from which on a rank is named as a straggler."""

PART = 2**22
"""Elements that are summed at a time, as the sum of integers casts them first."""

MOST_VALUES = 4
"""Ranks whose values are told where no majority has one."""

COUNTS_FROM_S = 2.0
"""Seconds of work from which on a rank is called slow: less of it differs by chance."""


@dataclass(frozen=True, slots=True)
class Drift:
    """Ranks that are not what the others are.

    Args:
        odd: they; none where no more than half of the ranks agree, as with two.
        words: what of them is another, and how.
    """

    odd: list[int]
    words: str

    def __str__(self) -> str:
        return f"rank {' and '.join(map(str, self.odd))} {self.words}" if self.odd else self.words


def drift(facts: Mapping[str, object], topology: Topology) -> Drift | None:
    """Compare what must be equal on all ranks; None where it is.  All of them call it and get the same.

    Args:
        facts: (picklable) values by name, the same names on every rank.
    """
    everyone = topology.from_all(facts)
    for name in facts:
        values = [repr(each[name]) for each in everyone]
        usual, times = Counter(values).most_common(1)[0]
        if times == topology.world_size:
            continue
        if times > topology.world_size / 2:
            odd = [rank for rank, value in enumerate(values) if value != usual]
            return Drift(odd, f"has another {name} than the other ranks: {values[odd[0]]} against {usual}")
        return Drift([], f"the ranks have different values of {name}: {', '.join(values[:MOST_VALUES])}")
    return None


def refuse_other_settings(settings: Settings, topology: Topology) -> None:
    """Compare what each rank was started with.  All of them call it.

    Raises:
        DestructError: on all ranks, naming the first key that one of them has another value of.
    """
    files = {"config": settings.config.model_dump(mode="json"), "engine.deepspeed": settings.deepspeed()}
    everyone = topology.from_all(dict(leaves(files, "")))
    first = everyone[0]
    for rank, theirs in enumerate(everyone):
        for key in first.keys() | theirs.keys():
            if first.get(key) != theirs.get(key):
                raise DestructError(
                    f"rank {rank} was started with {key} = {theirs.get(key)}, and rank 0 with {first.get(key)}",
                    "start all ranks with one config file and one command line",
                )


def broken(engines: Mapping[str, TrainEngine | FrozenEngine], topology: Topology) -> list[str]:
    """What is not finite, in words and the same on every rank: weights, masters or moments of a network on a rank.

    All ranks call it.

    Args:
        engines: by the name of their network.
    """
    mine = [role for role, engine in engines.items() if not _finite(engine.states())]
    return [f"{role} on rank {rank}" for rank, roles in enumerate(topology.from_all(mine)) for role in roles]


@torch.no_grad()
def _finite(tensors: Iterable[Tensor]) -> bool:
    # A sum takes no memory, and is not finite where a part of it is not.
    sums = [tensor.detach().sum(dtype=torch.float32).cpu() for tensor in tensors]
    return all(map(math.isfinite, torch.stack(sums).tolist())) if sums else True


@torch.no_grad()
def checksum(tensors: Iterable[Tensor]) -> int:
    """The sum of the bits of floating-point tensors, read as integers: one flipped bit changes it."""
    kinds = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    parts = (part for t in tensors for part in t.contiguous().view(-1).view(kinds[t.element_size()]).split(PART))
    return sum(int(part.sum(dtype=torch.int64)) for part in parts)


def digest(state: object) -> str:
    """A few characters that tell a state of JSON's types from another one."""
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:16]


def straggler(work: Work, topology: Topology) -> tuple[float, str | None]:
    """Compare the pace of what each rank has done by itself.  All ranks call it.

    Responses differ in their lengths, so that a rank is slow only by the step and by the token: where few are left to
    be sampled a step is cheap and a token is not.

    Args:
        work: of this rank, since the last comparison.

    Returns:
        How many times as long as the median of the others the slowest rank takes, 1 on one rank; and a line that names
        it where that is much.
    """
    everyone = topology.from_all(work)
    ratios = [_slower(everyone, rank) for rank in range(len(everyone))]
    slowest = max(range(len(ratios)), key=ratios.__getitem__)
    if ratios[slowest] < SLOWER or everyone[slowest].seconds < COUNTS_FROM_S:
        return ratios[slowest], None
    return ratios[slowest], (
        f"rank {slowest} is slow: it takes {ratios[slowest]:.1f} times as long as the others to sample; all wait for it"
    )


def _slower(everyone: list[Work], rank: int) -> float:
    def pace(work: Work) -> tuple[float, float]:
        return work.seconds / max(1, work.steps), work.seconds / max(1, work.tokens)

    others = [pace(work) for place, work in enumerate(everyone) if place != rank and work.seconds]
    if not others:
        return 1.0
    by_step, by_token = zip(*others, strict=True)
    step, token = pace(everyone[rank])
    return min(step / median(by_step), token / median(by_token))
