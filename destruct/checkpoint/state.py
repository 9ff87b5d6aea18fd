"""Everything that a resumed run needs besides the networks."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(slots=True)
class TrainState:
    """Counters and controllers at an update boundary; written by the loop, and by `Run.save` as far as it collects."""

    kl_coef: float  # beta now
    update: int = 0  # PPO updates finished
    optimizer_steps: int = 0  # PPO steps of each network
    tokens: int = 0  # drawn window tokens and sampled tokens, warm-up included
    seconds: float = 0.0  # of training, before a resume included
    kl_max: float = 0.0  # largest k3(policy || reference) after an update, nats per token
    breaches: int = 0  # updates that ended beyond kl.bound
    skipped: int = 0  # optimizer steps dropped because a loss was not finite
    rewards: list[list[list[float]]] = field(default_factory=list)  # per update and source [sum of scores, rollouts]
    # "before", "after_warmup", "after" (the newest one in PPO) -> losses, nats per token
    validation: dict[str, dict[str, float]] = field(default_factory=dict)
    best_loss: float = math.inf  # smallest mean validation loss of a checkpoint, nats per token
    best_update: int | None = None  # of that checkpoint; None when there is none
    kl_from_initial: float = 0.0  # at the newest evaluation, nats per token
    probe: dict[str, Any] = field(default_factory=dict)  # Probe.state_dict(), made when PPO began
    mixture: dict[str, Any] = field(default_factory=dict)  # Mixture.state_dict()
    curriculum: dict[str, Any] = field(default_factory=dict)  # Curriculum.state_dict()

    def save(self, path: Path) -> None:
        """Write JSON; Python's floats survive it bit for bit."""
        path.write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "TrainState":
        """Read what `save` wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))
