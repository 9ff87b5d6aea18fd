"""The strategy that a config asks for: sections of the YAML become the dials of layer 1, without torch."""

import math

import numpy as np

from destruct.config.curriculum import CurriculumConfig
from destruct.curriculum.estimates import Floats
from destruct.curriculum.strategies import Options, Strategy, make_strategy
from destruct.curriculum.target import TargetRules
from destruct.curriculum.weight_dynamics import Dials


def dials_from(c: CurriculumConfig, sources: int) -> Dials:
    """The dials of S sources: the floor as an absolute share, null as never, the signal that is usual for the strategy.

    Args:
        sources: S.
    """
    usual = "metric" if c.strategy == "literal" else "progress"
    rules = TargetRules(
        z=c.z,
        credit=c.credit,
        rescue=c.rescue,
        repetition_epochs=c.repetition_epochs or math.inf,
        exploration_rounds=c.exploration_rounds or math.inf,
        plateaus=c.plateau_retry,
    )
    return Dials(c.eta, c.mu, c.lam, c.floor / sources, c.signal or usual, c.projection, rules)


def strategy_from(c: CurriculumConfig, prior: dict[str, float], sizes: Floats) -> Strategy:
    """The strategy of `c` over the sources of `prior`, before any round.

    Args:
        prior: w0 of each source, by name; every array of the strategy is in its order.
        sizes: (S,) training tokens, which `temperature` alone reads.

    Raises:
        DestructError: the dials are unstable, or contradict the priors.
    """
    reference = np.array([c.reference_loss.get(name, 0.0) for name in prior])
    options = Options(temperature=c.temperature, sizes=sizes, reference=reference)
    return make_strategy(c.strategy, np.array(list(prior.values())), dials_from(c, len(prior)), options)
