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
    lm_steps: int = 0  # of the warm-up, the policy's
    value_steps: int = 0  # of the warm-up, the value network's
    optimizer_steps: int = 0  # PPO steps of each network
    tokens: int = 0  # drawn window tokens and sampled tokens, warm-up included
    seconds: float = 0.0  # of training, before a resume included
    kl_max: float = 0.0  # largest k3(policy || reference) after an update, nats per token
    breaches: int = 0  # updates that ended beyond kl.bound
    skipped: int = 0  # optimizer steps dropped because a loss or a gradient was not finite
    skipped_in_a_row: int = 0  # of the newest updates (in the warm-up: steps) how many had one, without a break
    sources: list[str] = field(default_factory=list)  # names, in the order of what is kept per source
    rewards: list[list[list[float]]] = field(default_factory=list)  # per update and source [sum of scores, rollouts]
    # "before", "after_warmup", "after" (the newest one in PPO) -> losses, nats per token, of the sources of that time
    validation: dict[str, dict[str, float]] = field(default_factory=dict)
    validated: int = 0  # updates after which the newest validation in PPO was made
    best_loss: float = math.inf  # smallest mean validation loss of a checkpoint, nats per token
    best_update: int | None = None  # of that checkpoint; None when there is none
    kl_from_initial: float = 0.0  # at the newest evaluation, nats per token
    probe: dict[str, Any] = field(default_factory=dict)  # Probe.state_dict(), made when PPO began
    mixture: dict[str, Any] = field(default_factory=dict)  # Mixture.state_dict()
    language_mixture: dict[str, Any] = field(default_factory=dict)  # of the policy's warm-up
    value_mixture: dict[str, Any] = field(default_factory=dict)  # of the value network's warm-up
    curriculum: dict[str, Any] = field(default_factory=dict)  # Curriculum.state_dict()

    @property
    def name(self) -> str:
        """What a checkpoint of this state is called: by its updates, or by the steps of the warm-up."""
        if self.update == 0 and not self.probe:
            return f"warmup-{self.lm_steps + self.value_steps:08d}"
        return step_name(self.update)

    @property
    def done(self) -> dict[str, int]:
        """By phase of the run the number of the first step that is to come; one after its evaluation's."""
        evaluated = {phase: self.lm_steps + 1 for phase in ("before", "after_warmup") if phase in self.validation}
        return evaluated | {"warmup": self.lm_steps, "value_warmup": self.value_steps, "ppo": self.update}

    def of_sources(self, sources: list[str]) -> "TrainState":
        """This state for a run of these sources, which takes what is kept per source by its name.

        A new source has no rollouts in the updates before; those of one that is gone are dropped.  Where sources came
        or went, the mean validation loss is one over others than before: nothing is the best of it yet.
        """
        moved = dataclasses.replace(self, sources=list(sources), rewards=reordered(self.rewards, self.sources, sources))
        if set(sources) != set(self.sources):
            moved.best_loss, moved.best_update = math.inf, None
            moved.validation = {phase: losses for phase, losses in self.validation.items() if phase != "after"}
        return moved

    def save(self, path: Path) -> None:
        """Write JSON; Python's floats survive it bit for bit."""
        path.write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "TrainState":
        """Read what `save` wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


def step_name(update: int) -> str:
    """What the checkpoint after `update` updates is called."""
    return f"step-{update:08d}"


def reordered(rewards: list[list[list[float]]], before: list[str], now: list[str]) -> list[list[list[float]]]:
    """`TrainState.rewards` with the columns of other sources.

    Args:
        rewards: per update and source of `before` [sum of scores, rollouts].
        before: names of its columns.
        now: names of the new ones.

    Returns:
        Per update and source of `now`; [0, 0] for a source that is not in `before`.
    """
    columns = [before.index(name) if name in before else None for name in now]
    return [[[0.0, 0.0] if place is None else list(row[place]) for place in columns] for row in rewards]
