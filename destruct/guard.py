"""What is looked at so that no run goes on where it should not: ranks that drift apart, a state that is broken."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from statistics import median

import torch
from torch import Tensor

from destruct import last_words
from destruct.checkpoint.identity import leaves
from destruct.config.settings import Settings
from destruct.engine.base import FrozenEngine, TrainEngine
from destruct.engine.topology import Topology
from destruct.errors import DestructError, Drifted

SLOWER = 1.5
"""Times the work of the others from which on a rank is named as a straggler."""

COUNTS_FROM_S = 2.0
"""Seconds of work from which on a rank is called slow: less of it differs by chance."""


def refuse_drift(facts: Mapping[str, object], topology: Topology) -> None:
    """Compare what must be equal on all ranks.  All of them call it.

    Args:
        facts: (picklable) values by name, the same names on every rank.

    Raises:
        Drifted: on all ranks; one of them has another value than most, or than the first where there are two.
    """
    everyone = topology.from_all(facts)
    for name in facts:
        values = [each[name] for each in everyone]
        usual, times = Counter(map(repr, values)).most_common(1)[0]
        if times == topology.world_size:
            continue
        usual = usual if times > topology.world_size / 2 else repr(values[0])
        odd = [rank for rank, value in enumerate(values) if repr(value) != usual]
        said = f"has another {name} than the other ranks: {values[odd[0]]!r} against {usual}"
        for rank in odd:
            last_words.blamed(rank, said)
        who = ", ".join(map(str, odd))
        raise Drifted(f"rank {who} {said}\n  remedy: look at its machine, then go on with --resume auto")


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
    return sum(int(t.contiguous().view(kinds[t.element_size()]).sum(dtype=torch.int64)) for t in tensors)


def digest(state: object) -> str:
    """A few characters that tell a state of JSON's types from another one."""
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:16]


def straggler(alone_s: float, topology: Topology) -> tuple[float, str | None]:
    """Compare the seconds of work that each rank has done by itself.  All ranks call it.

    Args:
        alone_s: of this rank, since the last comparison.

    Returns:
        The slowest rank's seconds as a multiple of the others' median, 1 on one rank; and a line that names the rank
        where it is much slower.
    """
    seconds = topology.from_all(alone_s)
    if len(seconds) == 1:
        return 1.0, None
    slowest = max(range(len(seconds)), key=seconds.__getitem__)
    others = median(seconds[:slowest] + seconds[slowest + 1 :])
    ratio = seconds[slowest] / others if others else 1.0
    if ratio < SLOWER or seconds[slowest] < COUNTS_FROM_S:
        return ratio, None
    return ratio, (
        f"rank {slowest} is slow: {seconds[slowest]:.1f} s for what takes the others {others:.1f} s; all wait for it"
    )
