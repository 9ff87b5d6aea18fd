"""The autocurriculum: when the frozen model is renewed and how the sampling weights follow progress."""

from typing import Literal

from pydantic import Field

from destruct.config.base import Section


class FrozenConfig(Section):
    """The rolling frozen copy of the policy: past self of the curriculum and anchor of the KL."""

    refresh_every: int = Field(4, ge=1)
    """Updates between two rounds (refresh, difficulty estimate, weight update); the curriculum has no other clock."""


class CurriculumConfig(Section):
    """Sampling weights from the difficulty of each source (docs/architecture.md, "The curriculum")."""

    strategy: Literal["uniform", "static", "literal", "second_order"] = "second_order"
    """`uniform` and `static` (the priors) do not move; `literal` is w += eta*g, clip at 0, divide by the sum;
    `second_order` follows significant progress with momentum, damping and a floor."""
    signal: Literal["metric", "progress"] = "metric"
    """What `literal` takes for g: the combined metric less its mean, or the progress."""
    difficulty_sample_size: int = Field(100, ge=2)
    """Held-out windows per source in each estimate; fewer where the source has fewer."""
    kappa: float = Field(0.0, ge=0)
    """Weight of the standard deviation in the combined metric M = D + kappa*sqrt(V)."""
    eta: float = Field(0.5, gt=0)
    """Gain of a weight update."""
    mu: float = Field(0.5, ge=0, lt=1)
    """Momentum of the weights."""
    lam: float = Field(1.0, ge=0)
    """Damping towards the prior."""
    floor: float = Field(0.25, ge=0, le=1)
    """Smallest weight of a source, as a share of the equal weight 1/S."""
    z: float = Field(1.0, ge=0)
    """Standard errors that progress must exceed before it counts."""
    projection: Literal["euclidean", "clip_renorm"] = "euclidean"
    """How `second_order` returns to the simplex; `literal` always clips and renormalises."""
