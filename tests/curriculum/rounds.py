"""What the curriculum's tests are fed with: estimates with plain defaults, and the dials of the config's defaults."""

import math
from dataclasses import fields, replace
from typing import Any

import numpy as np

from destruct.config.curriculum import CurriculumConfig
from destruct.curriculum.dials import dials_from
from destruct.curriculum.estimates import Estimates, LossEstimates, as_columns
from destruct.curriculum.target import Target, TargetRules, choose_target
from destruct.curriculum.weight_dynamics import Dials

PLAIN: dict[str, Any] = {
    "difficulty": 3.0,
    "difficulty_se": 0.01,
    "variance": 0.1,
    "metric": 3.0,
    "progress": 0.0,
    "progress_se": 0.01,
    "compressed": math.nan,
    "gap_growth": 0.0,
    "gap_growth_se": 0.0,
    "tokens": 0.0,
    "share": 0.0,
    "epochs": 0.0,
    "exhausted": 0.0,
    "advantage": math.nan,
    "advantage_se": math.inf,
    "reward_variance": math.nan,
    "reward_variance_se": math.inf,
}


def estimates_of(round_index: int = 2, batches: int = 1, **figures: Any) -> Estimates:
    """A round, by default the first that moves weights; a single number is meant for every source."""
    columns = np.broadcast_arrays(*(np.array(x, float) for x in (PLAIN | figures).values()))
    arrays = {name: np.atleast_1d(x).copy() for name, x in zip(PLAIN | figures, columns, strict=True)}
    return Estimates(round_index=round_index, batches=batches, **arrays)


def estimates_for(sources: int, round_index: int = 9, batches: int = 1, **figures: Any) -> Estimates:
    """The same of so many sources, whatever `figures` has."""
    figures["difficulty"] = np.broadcast_to(figures.get("difficulty", PLAIN["difficulty"]), sources)
    return estimates_of(round_index, batches, **figures)


def completed(losses: LossEstimates, **figures: Any) -> Estimates:
    """What the panels said, with those figures of what was drawn."""
    said = {field.name: getattr(losses, field.name) for field in fields(LossEstimates)}
    return estimates_of(**(said | figures))


def reordered(estimates: Estimates, order: Any) -> Estimates:
    """The same round of the same sources, listed in another order."""
    arrays = {name: x[order] for name, x in as_columns(estimates).items() if isinstance(x, np.ndarray)}
    return replace(estimates, **arrays)


def rules_of(**changes: Any) -> TargetRules:
    """The rules of the config's defaults, but for `changes`."""
    return replace(dials_from(CurriculumConfig(), 1).rules, **changes)


def dials_of(sources: int, **changes: Any) -> Dials:
    """The dials of the config's defaults, but for `changes`; names of rules change the rules."""
    names = {field.name for field in fields(TargetRules)}
    rules = rules_of(**{name: x for name, x in changes.items() if name in names})
    others = {name: x for name, x in changes.items() if name not in names}
    return replace(dials_from(CurriculumConfig(), sources), rules=rules, **others)


# Every rule of a target switched off.
OFF = {"z": 0.0, "credit": 0.0, "rescue": 0.0, "repetition_epochs": math.inf, "exploration_rounds": math.inf}


def target(
    prior: Any = (0.5, 0.5), progress: Any = 0.0, progress_se: Any = 0.01, idle: Any = 0.0, **figures: Any
) -> Target:
    """`choose_target` on progress, with all rules off unless they are in `rules`."""
    rules = rules_of(**(OFF | figures.pop("rules", {})))
    prior = np.array(prior)
    now = estimates_of(progress=progress * np.ones_like(prior), progress_se=progress_se, **figures)
    return choose_target(now, now.progress, now.progress_se, prior, idle * np.ones_like(prior), rules)
