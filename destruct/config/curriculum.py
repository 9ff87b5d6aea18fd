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

    strategy: Literal["uniform", "static", "temperature", "literal", "second_order", "doremi", "odm"] = "second_order"
    """`uniform`, `static` (the priors) and `temperature` (tokens^(1/T)) do not move; `literal` is w += eta*g, clip at
    0, divide by the sum; `second_order` follows significant progress with momentum, damping and a floor; `doremi`
    follows the loss above `reference_loss`, `odm` the loss itself (Exp3)."""
    signal: Literal["progress", "metric", "advantage", "reward_variance"] | None = None
    """What the weights follow. Of `second_order` the progress unless another one is named, of `literal` the combined
    metric less its mean; |advantage| and the variance of the rewards are those of the rollouts since the last round."""
    unit: Literal["nats", "bits_per_byte", "relative"] = "nats"
    """Of difficulty and progress: nats per token; bits per byte, which no tokenizer moves; or shares of each source's
    first metric."""
    difficulty_sample_size: int = Field(100, ge=2)
    """Held-out windows per source in each estimate; fewer where the source has fewer, or the budget ends."""
    probe_budget: float = Field(0.25, gt=0)
    """Tokens scored in a round per token trained on since the last one, each PPO epoch counted. Scoring takes one
    forward, training about eight with both networks: 0.25 is some 3% of an update's arithmetic. Beyond it the panels
    shrink, down to a dozen windows."""
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
    credit: float = Field(0.5, ge=0, le=1)
    """Power by which progress is divided by a source's share over its prior; 0 pays per token of the whole mixture,
    1 per token of the source's own."""
    rescue: float = Field(0.5, ge=0)
    """Weight of getting worse, beyond two standard errors, of a source drawn below its prior, where the training
    text is lost too; 0 rescues none."""
    repetition_epochs: float | None = Field(15.4, gt=0)
    """Epochs after the first one that cut the worth of a source's progress to 1/e; null discounts none."""
    exploration_rounds: float | None = Field(0.4, gt=0)
    """Rounds without certain progress that halve a source's part of what is left to exploration; a round counts the
    less, the less evidence it has. null keeps priors."""
    plateau_retry: bool = True
    """A source on which the model is worse than a compressor (LZMA) is on a plateau where it makes no certain
    progress, and not at its end like noise: it counts as no idle one and keeps its prior."""
    temperature: float = Field(1.0, ge=1)
    """T of the strategy `temperature`: 1 samples by size, more is more even."""
    reference_loss: dict[str, float] = {}
    """For `doremi`: loss of a reference model on each source, in `unit`."""
    projection: Literal["euclidean", "clip_renorm"] = "euclidean"
    """How `second_order` returns to the simplex; `literal` always clips and renormalises."""
