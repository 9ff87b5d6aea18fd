"""A run while it is going on: its parts, made by build.py, and what the loop asks of them together."""

import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from destruct.checkpoint import contents
from destruct.checkpoint.identity import CONFIG, DATA, config_digest, identity
from destruct.checkpoint.state import TrainState
from destruct.checkpoint.store import CheckpointStore
from destruct.config.settings import Config, Settings
from destruct.curriculum.round import Curriculum
from destruct.data.loader import Loader
from destruct.data.mixture import Mixture
from destruct.data.stream_pieces import StreamPieces
from destruct.data.tokenizing import Tokenizer
from destruct.drift import Probe
from destruct.engine.base import FrozenEngine, TrainEngine
from destruct.engine.topology import Topology
from destruct.errors import DestructError
from destruct.exits import Exit
from destruct.inputs import Inputs
from destruct.models.policy import PolicyNetwork
from destruct.ops.rows import LossCoefficients
from destruct.ppo.update import UpdateSettings
from destruct.rollout.generate import Sampling
from destruct.rollout.rewards import Reward
from destruct.rollout.score import ScoreSettings
from destruct.seeding import derive
from destruct.signals import Signals, Stopped
from destruct.tracking.console import Screen
from destruct.tracking.sinks import Sinks
from destruct.tracking.watch import Watch


@dataclass
class Run:
    """Everything the loop touches."""

    settings: Settings
    topology: Topology
    folder: Path
    screen: Screen
    sinks: Sinks | None  # on the first rank alone
    names: list[str]  # sources, in the order of every weight vector
    inputs: Inputs
    prompts: list[list[int]]  # the user's own, as tokens
    mixture: Mixture
    loader: Loader
    curriculum: Curriculum
    reward: Reward
    networks: contents.Networks
    replica: PolicyNetwork
    sampling: Sampling
    probe: Probe | None  # made when PPO begins
    store: CheckpointStore
    updates: int  # PPO updates that the run plans
    updates_per_epoch: int
    update_settings: UpdateSettings
    state: TrainState
    started: float  # time.perf_counter() at the start of this process
    seconds_before: float  # of training before a resume
    seconds_to_first_step: float = 0.0  # from the start of this process to its first optimizer step
    watch: Watch = field(default_factory=Watch)
    signals: Signals = field(default_factory=Signals)
    saved: bool = True  # the last checkpoint of which the end is known was published; the same on every rank
    best_before: tuple[int | None, float] = (None, math.inf)  # update and loss, before the save under way

    @property
    def config(self) -> Config:
        """The YAML."""
        return self.settings.config

    @property
    def tokenizer(self) -> Tokenizer:
        """The one tokenizer."""
        return self.inputs.tokenizer

    @property
    def policy(self) -> TrainEngine:
        """pi_theta."""
        return self.networks.policy

    @property
    def value(self) -> TrainEngine:
        """V_phi."""
        return self.networks.value

    @property
    def frozen(self) -> FrozenEngine:
        """pi_F, the rolling copy."""
        return self.networks.frozen

    @property
    def in_step(self) -> bool:
        """Whether the ranks must sample equally many tokens, as each gathers the policy's layers."""
        return self.config.rollout.gather == "layers"

    @property
    def seconds(self) -> float:
        """Of training so far, before a resume included."""
        return self.seconds_before + time.perf_counter() - self.started

    def key(self, *words: int | str) -> int:
        """A 63-bit key derived from the run's seed, for a generator that is equal on every rank."""
        return derive(self.config.run.seed, *words) >> 1

    def log(self, phase: str, step: int, values: dict[str, float]) -> None:
        """Log figures, on the first rank."""
        if self.sinks is not None:
            self.sinks.scalars(phase, step, values)

    def coefficients(self) -> LossCoefficients:
        """The loss's coefficients, with beta as it stands now."""
        c = self.config
        in_loss = c.kl.in_loss != "none"
        return LossCoefficients(
            clip_low=c.ppo.clip_range,
            clip_high=c.ppo.upper_clip_range,
            kl_coef=self.state.kl_coef if in_loss else 0.0,
            kl=c.kl.in_loss,
            entropy_coef=c.ppo.entropy_coef,
            dual_clip=c.ppo.dual_clip,
        )

    def score_settings(self) -> ScoreSettings:
        """What scoring depends on, with beta as it stands now."""
        c = self.config
        return ScoreSettings(
            temperature=c.rollout.temperature,
            ptx=c.ppo.ptx_coef > 0,
            kl_coef=self.state.kl_coef if c.kl.in_reward else 0.0,
            exact_kl=self.coefficients().exact_kl,
        )

    def mark_first_step(self) -> None:
        """Note when this process made its first optimizer step; later calls change nothing."""
        if not self.seconds_to_first_step:
            self.seconds_to_first_step = time.perf_counter() - self.started

    def is_due(self, every: int) -> bool:
        """True in the update that completes `every` of them once more; never for 0."""
        return every > 0 and (self.state.update + 1) % every == 0

    def pause(self) -> None:
        """A boundary between two steps: where a signal asked any rank to stop, save and leave.  All ranks call it.

        Raises:
            Stopped: they all do.
        """
        number = int(self.topology.max(torch.tensor(self.signals.received)).item())
        if number == 0:
            return
        if self.store.newest != self.state.name:
            self.save()
        self.settle()
        if not self.saved:
            raise self.unsaved()
        raise Stopped(number, f"{self.store.folder / self.state.name} is saved, and --resume auto goes on from there")

    def close(self) -> None:
        """End what writes files and what reads ahead."""
        self.store.close()
        if self.sinks is not None:
            self.sinks.close()
        self.loader.close()
        for pieces in self.inputs.train:
            if isinstance(pieces, StreamPieces):
                pieces.close()

    def save_if_due(self, steps: int) -> None:
        """Write a checkpoint in the warm-up, after so many steps of it."""
        every = self.config.run.checkpoint_every
        if every > 0 and steps % every == 0:
            self.save()

    def save(self, best: bool = False) -> None:
        """Write a checkpoint, which is published behind training; `settle` tells how that ended.

        Args:
            best: the newest validation is of its weights, and the lowest so far.
        """
        self.settle()
        state = self.state
        self.best_before = state.best_update, state.best_loss
        if best:
            state.best_update, state.best_loss = state.update, state.validation["after"]["mean"]
        if self.store.newest == state.name:  # its weights lie there, and are never written over
            if best:
                self.store.stand_at(self.store.folder / state.name, best=True)
            return
        state.mixture, state.curriculum = self.mixture.state_dict(), self.curriculum.state_dict()
        state.seconds = self.seconds
        facts: dict[str, object] = {"run": self.config.run.name, CONFIG: config_digest(self.config)}
        facts |= identity(self.settings) | {DATA: self.inputs.digests}
        contents.save(self.store, self.networks, state, self.tokenizer.text, facts, best)

    def settle(self) -> None:
        """Wait for the checkpoint that is being published; a failed one is reported and the run goes on."""
        if not self.store.is_saving:
            return
        self.saved = self.store.settle() is not None
        if not self.saved:
            self.state.best_update, self.state.best_loss = self.best_before
            self.screen.say("the last checkpoint could not be written (is the disk full?); training goes on")

    def unsaved(self) -> DestructError:
        """What to say where the run ends and its last checkpoint could not be written."""
        return DestructError(
            f"the last checkpoint could not be written to {self.store.folder}",
            "make room there, then go on from the one before with run.resume=auto",
            Exit.ENVIRONMENT,
        )
