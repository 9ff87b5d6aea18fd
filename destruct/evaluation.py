"""Language-model losses on held-out windows: validation, and the panels of the curriculum."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from destruct.batch import TokenWindows
from destruct.engine.base import FrozenEngine, TrainEngine
from destruct.engine.topology import Topology
from destruct.heartbeat import HEART
from destruct.ops.rows import ScoreRows

WINDOWS_PER_FORWARD = 16


@torch.no_grad()
def window_nats(engine: TrainEngine | FrozenEngine, windows: TokenWindows, topology: Topology) -> Tensor:
    """Sum of -log p over the tokens of each window that stand behind another one of their document, at temperature 1,
    the ranks sharing the work.

    Args:
        windows: n of them, equal on every rank; `target_counts` says how many tokens of each are summed over.

    Returns:
        (n,) float64 nats, on every rank.
    """
    n = len(windows)
    nats = torch.zeros(n, dtype=torch.float64, device=topology.device)
    mine = topology.share(n)
    largest_share = -(-n // topology.world_size)
    # Every rank makes the same number of forwards, the last of them perhaps on nothing.
    for start in range(0, largest_share, WINDOWS_PER_FORWARD):
        items = mine[start : start + WINDOWS_PER_FORWARD]
        part = windows.select(items).to(topology.device)
        asked = ScoreRows(part.targets, torch.ones(len(part.targets), device=topology.device))
        scores = engine(part.tokens, part.rows, asked, part.positions)
        grid = torch.zeros(part.predicted.shape, dtype=torch.float64, device=topology.device)
        grid[part.predicted] = -scores.logprobs.double()
        nats[items] = grid.sum(1)
        HEART.advance(min(WINDOWS_PER_FORWARD * topology.world_size, n - start * topology.world_size))
    return topology.sum(nats)


@dataclass(frozen=True, slots=True)
class ValidationSet:
    """One source's validation windows.  Raises ValueError where nothing is predicted in them: there is no loss then."""

    name: str
    windows: TokenWindows
    bytes: int  # UTF-8 bytes of the predicted tokens
    learnable: bool

    def __post_init__(self) -> None:
        if not self.windows.predicted.any():
            raise ValueError(f"ValidationSet {self.name!r}: nothing is predicted in its {len(self.windows)} windows")


@dataclass(frozen=True, slots=True)
class Validation:
    """Validation loss of each source."""

    nats_per_token: dict[str, float]
    bits_per_byte: dict[str, float]
    mean: float  # nats per token, equal weight per learnable source

    def as_summary(self) -> dict[str, float]:
        """Each source's loss in nats per token, and their `mean`."""
        return {**self.nats_per_token, "mean": self.mean}


def validate(engine: TrainEngine | FrozenEngine, sources: list[ValidationSet], topology: Topology) -> Validation:
    """Loss per source; `mean` leaves out sources marked not learnable (all count when none is learnable).

    All ranks call it: they share the windows.
    """
    nats_per_token, bits_per_byte = {}, {}
    HEART.expect(sum(len(source.windows) for source in sources))
    for source in sources:
        total = window_nats(engine, source.windows, topology).sum().item()
        nats_per_token[source.name] = total / int(source.windows.target_counts.sum())
        bits_per_byte[source.name] = total / math.log(2) / source.bytes
    counted = [nats_per_token[s.name] for s in sources if s.learnable] or list(nats_per_token.values())
    return Validation(nats_per_token, bits_per_byte, sum(counted) / len(counted))
