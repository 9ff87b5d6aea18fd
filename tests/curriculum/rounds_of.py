"""A curriculum over tiny networks, and a round of it as the loop makes it."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from destruct.curriculum.estimates import Estimates, Floats
from destruct.curriculum.probing import Prober
from destruct.curriculum.progress import ProgressEstimator
from destruct.curriculum.round import Curriculum, Panels
from destruct.curriculum.strategies import Options, make_strategy
from destruct.curriculum.target import TargetRules
from destruct.curriculum.weight_dynamics import Dials
from destruct.engine.single import SingleEngine, SingleFrozen
from tests.curriculum.networks import ALONE, source, whole

PANEL = 10
SHARES = {"runs": 0.5, "noise": 0.25, "few": 0.25}
HELD_OUT = {"runs": source(0, 30), "noise": source(1, 14), "few": source(2, 6)}
RULES = TargetRules(z=1.0, credit=0.5, rescue=0.5, repetition_epochs=15.4, exploration_rounds=5.0, plateaus=True)


def curriculum(
    strategy: str = "second_order",
    shares: dict[str, float] = SHARES,
    held_out: dict[str, Tensor] = HELD_OUT,
    training: Sequence[Tensor] | None = None,
    size: int = PANEL,
    budget: float = 1e9,
) -> Curriculum:
    """Over the sources of `shares`; without training windows given, those held out are taken for such."""
    windows = whole([held_out[name] for name in shares])
    dials = Dials(0.5, 0.5, 1.0, 0.05, "metric" if strategy == "literal" else "progress", "euclidean", RULES)
    options = Options(2.0, np.array([float(len(w)) for w in windows]), np.full(len(shares), 2.0))
    rule = make_strategy(strategy, np.array(list(shares.values())), dials, options)
    panels = Panels(
        windows, windows if training is None else whole(list(training)), size, budget, compress=True, relative=False
    )
    return Curriculum(list(shares), ProgressEstimator(len(shares), kappa=0.5), rule, panels, Prober())


def one_round(
    rounds: Curriculum, policy: SingleEngine, frozen: SingleFrozen, epochs: Floats | None = None
) -> Estimates:
    """Of a run in which nothing is exhausted, nor gone through unless `epochs` says so."""
    frozen.refresh(policy)
    nothing = np.zeros(len(rounds.names))
    return rounds.round(frozen, ALONE, nothing if epochs is None else epochs, nothing)
