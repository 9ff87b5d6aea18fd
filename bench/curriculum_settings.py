"""What a run of the curriculum benchmark depends on."""

from dataclasses import dataclass, field
from typing import Any

from destruct.config.base import validate
from destruct.config.curriculum import CurriculumConfig
from destruct.errors import DestructError

BARE = ("uniform", "static")
"""Strategies that read no key of the config beside their name; both draw as much of each source."""
FIXED = (*BARE, "temperature")
"""Strategies whose weights never move: they make no rounds, and none is charged to them."""


@dataclass(frozen=True)
class Settings:
    """All that a run depends on, in JSON's types."""

    mixture: str  # what the sources together are called
    sources: list[str]  # their names, in the order in which the curriculum is given them
    strategy: str
    seed: int
    budget: int  # tokens
    overrides: dict[str, Any] = field(default_factory=dict)  # of CurriculumConfig, beside the strategy
    panel_size: int | None = None  # held-out windows of a source in a round; None: the config's
    catalogue: str = "bench.curriculum_sources"  # module with the sources: SOURCES, by name
    batch: int = 32  # B, windows of a step
    warmup_tokens: int = 150_000  # trained on before round 0, by the prior
    round_tokens: int = 300_000  # trained on between two rounds
    evaluate_tokens: int = 250_000  # of budget_used between two evaluations
    pool_share: float = 0.6  # of the budget: training windows that a source has, where it has as many
    panel_windows: int = 256  # held-out windows of a source, of which the rounds take their panels
    test_windows: int = 48  # windows of a source in each evaluation
    learning_rate: float = 2e-3  # constant after the rise, so that each point of the curve is a possible end
    rising_steps: int = 50
    hidden_size: int = 128
    intermediate_size: int = 384
    num_layers: int = 4

    def config(self) -> CurriculumConfig:
        """The curriculum's section.

        Raises:
            DestructError: an override is unknown or out of its bounds, or the strategy is unknown.
        """
        panel = {} if self.panel_size is None else {"difficulty_sample_size": self.panel_size}
        config = validate(CurriculumConfig, {"strategy": self.strategy, **panel, **self.overrides}, "--set")
        if config.strategy == "doremi" and config.unit != "nats":
            raise DestructError(f"doremi with unit={config.unit}: its reference losses are in nats", "leave unit out")
        return config

    @property
    def label(self) -> str:
        """The strategy with what was overridden, e.g. `second_order[credit=0]`."""
        changed = ",".join(f"{name}={value}" for name, value in sorted(self.overrides.items()))
        return f"{self.strategy}[{changed}]" if changed else self.strategy
