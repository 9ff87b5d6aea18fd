"""A run while it is going on: its parts, made by build.py, and what the loop asks of them together."""

import math
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import torch

from destruct import last_words, setbacks
from destruct.checkpoint import contents, shelf
from destruct.checkpoint.identity import CONFIG, DATA, config_digest, identity
from destruct.checkpoint.state import TrainState
from destruct.checkpoint.store import CheckpointStore
from destruct.claim import Claim
from destruct.config.settings import Config, Settings
from destruct.curriculum.round import Curriculum
from destruct.data.loader import Loader
from destruct.data.mixture import Mixture
from destruct.data.stream_pieces import StreamPieces
from destruct.data.tokenizing import Tokenizer
from destruct.drift import Probe
from destruct.engine.base import FrozenEngine, TrainEngine
from destruct.engine.topology import Topology
from destruct.errors import DestructError, Diverged, Drifted
from destruct.exits import Exit
from destruct.guard import broken, checksum, digest, drift, straggler
from destruct.heartbeat import HEART, Work
from destruct.inputs import Inputs
from destruct.models.policy import PolicyNetwork
from destruct.ppo.update import UpdateSettings
from destruct.rollout.generate import Sampling
from destruct.rollout.rewards import Reward
from destruct.seeding import derive
from destruct.signals import Signals, Stopped
from destruct.tracking.console import Screen
from destruct.tracking.sinks import Sinks
from destruct.tracking.watch import Watch

COMPARED = 4
"""Parameters of a network that are compared over ranks at a time."""


@dataclass
class Run:
    """Everything the loop touches."""

    settings: Settings
    topology: Topology
    folder: Path
    claimed: Claim  # on that folder
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
    has_sampled: bool = False  # the replica holds weights
    worked_alone: Work = Work()  # HEART.alone_work at the last comparison of speeds

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

    def mark_first_step(self) -> None:
        """Note when this process made its first optimizer step; later calls change nothing."""
        if not self.seconds_to_first_step:
            self.seconds_to_first_step = time.perf_counter() - self.started

    def is_due(self, every: int) -> bool:
        """True in the update that completes `every` of them once more; never for 0."""
        return every > 0 and (self.state.update + 1) % every == 0

    def asked_to_stop(self) -> int:
        """Number of a signal that any rank has got, SIGTERM where its launcher is gone, else 0.  All ranks call it."""
        left_alone = signal.SIGTERM if last_words.launcher_is_gone() else 0
        return int(self.topology.max(torch.tensor(self.signals.received or left_alone)).item())

    def pause(self) -> None:
        """A boundary between two steps: where a signal asked any rank to stop, save and leave.  All ranks call it.

        Raises:
            Stopped: they all do.
        """
        number = self.asked_to_stop()
        if number == 0:
            return
        if last_words.launcher_is_gone():
            self.screen.say("the launcher was killed, so this run saves and stops")
        if self.store.newest != self.state.name:
            self.save()
        self.settle()
        if not self.saved:
            raise self.unsaved()
        raise Stopped(number, f"{self.store.folder / self.state.name} is saved, and --resume auto goes on from there")

    def compare(self) -> None:
        """Hold against each other what must be equal on all ranks, which all call it.

        Raises:
            Drifted: one is not what the others are.
        """
        if self.topology.world_size > 1 and (found := drift(self.facts(), self.topology)):
            self.settle()  # what is being published was well
            last_words.blamed(found.odd, found.words)
            raise Drifted(f"{found}\n  remedy: look at the machines, then go on with --resume auto")

    def compare_speeds(self) -> float:
        """How far the slowest rank is behind the others since the last call, 1 for not at all; said where it is much.

        All ranks call it.
        """
        before, self.worked_alone = self.worked_alone, HEART.alone_work
        ratio, slow = straggler(self.worked_alone - before, self.topology)
        if slow is not None:
            self.screen.say(slow)
        return ratio

    def facts(self) -> dict[str, object]:
        """What must be equal on all ranks, by name; of the networks a few parameters, others each time."""
        state, lrs, step = self.state, self.update_settings, self.state.optimizer_steps
        replica = [p for p in self.replica.parameters() if self.has_sampled and not p.is_meta]
        return {
            "config": config_digest(self.config),
            "number of steps": (state.update, state.lm_steps, state.value_steps, step, state.tokens),
            "KL coefficient": state.kl_coef,
            "pair of learning rates": (lrs.policy_lr(step), lrs.value_lr(step)),
            "vector of sampling weights": self.curriculum.weights.tolist(),
            "state of the curriculum": digest(self.curriculum.state_dict()),
            "place in the data": digest(self.mixture.state_dict()),
            "policy": checksum(self._some(self.policy)),
            "value network": checksum(self._some(self.value)),
            "copy of the policy to sample from": checksum(replica),
        }

    def _some(self, engine: TrainEngine) -> Iterator[torch.Tensor]:
        names = [name for name, _ in engine.module.named_parameters()]
        turn = self.state.update * COMPARED
        for place in range(min(COMPARED, len(names))):
            yield engine.in_full(names[(turn + place) % len(names)])

    def broken(self) -> list[str]:
        """The networks that are not finite, and on which ranks; the same on every rank, and all of them call it."""
        copies = {file.parent.name: copy for file, copy in self.networks.copies.items()}
        return broken({"policy": self.policy, "value": self.value, **copies}, self.topology)

    def set_back(self, why: str) -> NoReturn:
        """End this life, as training cannot go on from what it has become; all ranks call it.

        Args:
            why: what is not finite, in words.

        Raises:
            Diverged: they all do.
        """
        self.settle()
        allowed = self.config.guard.restarts
        last = self.topology.first_rank_makes(lambda: shelf.newest_well(self.store.folder))
        where = f"update {self.state.update}" if self.probe else "the warm-up"
        problem = f"training diverged in {where}: not finite: {why}"
        if self.probe is None or last is None:
            remedy = "lower the learning rates or the reward's scale, and start it anew"
            raise Diverged(problem, remedy, Exit.DIVERGED)
        entry = setbacks.Setback(self.state.update, last.name, why, self.mixture.state_dict())
        times = self.topology.first_rank_makes(lambda: setbacks.record(self.folder, entry))
        if times > allowed:
            remedy = f"lower the learning rates, or go on from an older checkpoint (destruct checkpoints {self.folder})"
            problem += f"; set back to {last.name} {times - 1} times before (guard.restarts={allowed})"
            raise Diverged(problem, remedy, Exit.DIVERGED)
        if not self.asked_to_stop():
            last_words.again()
        remedy = f"--resume auto goes on from {last}, without the texts drawn since (set-back {times} of {allowed})"
        raise Diverged(problem, remedy, Exit.RANK_FAILED)

    def close(self) -> None:
        """End what writes files and what reads ahead."""
        self.store.close()
        if self.sinks is not None:
            self.sinks.close()
        self.loader.close()
        for pieces in self.inputs.train:
            if isinstance(pieces, StreamPieces):
                pieces.close()
        self.claimed.leave()

    def save_if_due(self, steps: int) -> None:
        """Write a checkpoint in the warm-up, after so many steps of it."""
        every = self.config.run.checkpoint_every
        if every > 0 and steps % every == 0:
            self.save()

    def save(self, best: bool = False) -> None:
        """Write a checkpoint, which is published behind training; `settle` tells how that ended.

        Args:
            best: the newest validation is of its weights, and the lowest so far.

        Raises:
            Drifted: a rank is not what the others are.
            Diverged: what would be saved is not finite.
        """
        self.settle()
        self.compare()
        if wrong := self.broken():
            self.set_back(", ".join(wrong))
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
