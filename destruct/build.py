"""The composition root: turns validated settings into a run.  No other file names the concrete classes."""

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from destruct import folder as run_folder
from destruct.checkpoint import contents
from destruct.checkpoint.state import TrainState
from destruct.checkpoint.store import CheckpointStore
from destruct.config.settings import Config, Settings
from destruct.curriculum.estimates import ProgressEstimator
from destruct.curriculum.round import Curriculum
from destruct.curriculum.strategies import Strategy, make_strategy
from destruct.data.mixture import Mixture
from destruct.data.sources import Documents, load_sources
from destruct.data.tokenizing import Tokenizer, train_tokenizer
from destruct.data.windows import SourceData, pack_sources
from destruct.engine.base import FrozenEngine, TrainEngine
from destruct.engine.schedule import Schedule
from destruct.engine.topology import Topology
from destruct.errors import DestructError
from destruct.evaluation import HeldOut
from destruct.models.policy import PolicyNetwork, build_copy, build_policy
from destruct.models.value import build_value
from destruct.ops.rows import LossCoefficients
from destruct.ppo.update import UpdateSettings
from destruct.rollout.rewards import Reward, RewardContext
from destruct.rollout.score import ScoreSettings
from destruct.seeding import derive, permuted
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
    tokenizer: Tokenizer
    names: list[str]  # sources, in the order of every weight vector
    train_windows: list[Tensor]  # per source (n_k, T) int64
    held_out: list[HeldOut]
    mixture: Mixture
    curriculum: Curriculum
    reward: Reward
    policy: TrainEngine
    value: TrainEngine
    frozen: FrozenEngine
    replica: PolicyNetwork
    store: CheckpointStore
    updates: int  # PPO updates that the run plans
    update_settings: UpdateSettings
    state: TrainState
    started: float  # time.perf_counter() at the start of this life
    seconds_before: float = 0.0  # of earlier lives
    seconds_to_first_step: float = 0.0  # from the start of this life to its first optimizer step
    watch: Watch = field(default_factory=Watch)

    @property
    def config(self) -> Config:
        """The YAML."""
        return self.settings.config

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
            clip_high=c.ppo.clip_range,
            kl_coef=self.state.kl_coef if in_loss else 0.0,
            kl_estimator=c.kl.in_loss,
            entropy_coef=c.ppo.entropy_coef,
        )

    def score_settings(self) -> ScoreSettings:
        """What scoring depends on, with beta as it stands now."""
        c = self.config
        return ScoreSettings(
            temperature=c.rollout.temperature,
            ptx=c.ppo.ptx_coef > 0,
            kl_coef=self.state.kl_coef if c.kl.in_reward else 0.0,
        )

    def mark_first_step(self) -> None:
        """Note when this life's first optimizer step was done; later calls change nothing."""
        if not self.seconds_to_first_step:
            self.seconds_to_first_step = time.perf_counter() - self.started

    def is_due(self, every: int) -> bool:
        """True in the update that completes `every` of them once more; never for 0."""
        return every > 0 and (self.state.update + 1) % every == 0

    @property
    def networks(self) -> contents.Networks:
        """The engines that a checkpoint holds."""
        return contents.Networks(self.policy, self.value, self.frozen)

    def save(self) -> None:
        """Write a checkpoint; a failed one is reported and the run goes on."""
        state = self.state
        state.mixture, state.curriculum = self.mixture.state_dict(), self.curriculum.state_dict()
        state.seconds = self.seconds_before + time.perf_counter() - self.started
        facts = run_folder.identity(self.settings)
        if contents.save(self.store, self.networks, state, self.tokenizer.text, facts) is None:
            self.screen.say(f"checkpoint after update {state.update} failed (is the disk full?); training goes on")

    def resume(self, checkpoint: Path) -> None:
        """Continue from a verified checkpoint of this run's identity."""
        self.state = contents.load(checkpoint, self.networks)
        self.seconds_before = self.state.seconds
        self.mixture.load_state_dict(self.state.mixture)
        self.curriculum.load_state_dict(self.state.curriculum)


def build(settings: Settings, topology: Topology, screen: Screen, started: float) -> Run:
    """Make the run, cheapest checks first: curriculum, checkpoint, data, reward functions, then networks, then resume.

    Raises:
        DestructError: anything a person can put right.
    """
    config = settings.config
    names = list(config.data.sources)
    strategy, c = _strategy(config, screen), config.curriculum
    checkpoint = run_folder.find_checkpoint(settings, topology)
    screen.say("reading and tokenizing the sources")
    documents = load_sources(config.data, config.run.seed)
    tokenizer = Tokenizer(topology.first_rank_makes(lambda: _tokenizer_text(settings, documents, checkpoint)))
    sources = pack_sources(documents, config.data, config.window_tokens, tokenizer)
    reward = Reward(config.reward.terms, RewardContext(config.reward.ngram, tokenizer))
    train = [torch.from_numpy(source.train.tokens).long() for source in sources]
    shuffled = [_shuffled_held_out(source, config.run.seed) for source in sources]
    held_out = [
        _held_out(source, windows[: config.run.validation_windows], tokenizer)
        for source, windows in zip(sources, shuffled, strict=True)
    ]
    panels = [torch.from_numpy(windows).long() for windows in shuffled]
    # Nothing about the input can be wrong from here on: only now is an older folder put aside.
    folder = run_folder.prepare(settings, topology, screen, tokenizer, resuming=checkpoint is not None)
    curriculum = Curriculum(ProgressEstimator(len(names), c.kappa), strategy, panels, c.difficulty_sample_size)
    updates = _planned_updates(config, train)
    screen.say(_windows_line(sources, config.window_tokens))
    screen.say(f"starting {topology.world_size} rank(s), {config.engine.backend}, {updates} updates planned")
    policy, value, frozen, replica = _networks(settings, tokenizer.vocab_size, topology)
    run = Run(
        settings=settings,
        topology=topology,
        folder=folder,
        screen=screen,
        sinks=None,
        tokenizer=tokenizer,
        names=names,
        train_windows=train,
        held_out=held_out,
        mixture=Mixture([len(windows) for windows in train], config.run.seed, names),
        curriculum=curriculum,
        reward=reward,
        policy=policy,
        value=value,
        frozen=frozen,
        replica=replica,
        store=CheckpointStore(folder / "checkpoints", topology, config.run.keep_checkpoints),
        updates=updates,
        update_settings=_update_settings(settings, updates),
        state=TrainState(kl_coef=config.kl.coef),
        started=started,
    )
    if checkpoint is not None:
        run.resume(checkpoint)
        screen.say(f"resumed after update {run.state.update} from {checkpoint}")
    if topology.is_first:
        run.sinks = Sinks(folder, run.state.update)
    return run


def _strategy(config: Config, screen: Screen) -> Strategy:
    c, prior = config.curriculum, np.array(list(config.data.prior.values()))
    if c.strategy == "second_order" and c.lam == 0:
        screen.say("warning: curriculum.lam=0 leaves the weights undamped, which is never stable; set it above 0")
    dials = c.model_dump(include={"eta", "mu", "lam", "z", "signal", "projection"})
    return make_strategy(c.strategy, prior, floor=c.floor / len(prior), **dials)


def _windows_line(sources: list[SourceData], window_tokens: int) -> str:
    train = sum(len(source.train.tokens) for source in sources)
    held = sum(len(source.validation.tokens) for source in sources)
    over = sum(source.train.dropped for source in sources)
    return (
        f"{len(sources)} sources: {train:,} windows of {window_tokens} tokens to train on, {held:,} held out; "
        f"{over:,} tokens left over"
    )


def _tokenizer_text(settings: Settings, documents: list[Documents], checkpoint: Path | None) -> str:
    if checkpoint is not None:
        return (checkpoint / contents.TOKENIZER).read_text(encoding="utf-8")
    texts = (text for source in documents for text in source.train)
    return train_tokenizer(texts, settings.config.data.tokenizer.vocab_size)


def _shuffled_held_out(source: SourceData, seed: int) -> np.ndarray:
    """A source's held-out windows (n, T) in a fixed random order, so that the first n of them are a sample.

    Neighbours come from one document: a panel of them had three times the error that its variance claims.

    Raises:
        DestructError: there is one window, so its difficulty has no error bar and no progress would ever count.
    """
    windows = source.validation.tokens
    if len(windows) < 2:
        raise DestructError(
            f"source {source.name!r} has {len(windows)} held-out window; difficulty needs at least 2",
            "give it more text, raise data.validation_fraction, or shorten the window",
        )
    return windows[permuted(np.arange(len(windows)), len(windows), derive(seed, "held out order", source.name))]


def _held_out(source: SourceData, tokens: np.ndarray, tokenizer: Tokenizer) -> HeldOut:
    """Validation windows; their first tokens are context only, so their bytes are not counted."""
    size = int(tokenizer.token_bytes[tokens[:, 1:]].sum())
    return HeldOut(source.name, torch.from_numpy(tokens).long(), size, source.learnable)


def _planned_updates(config: Config, train: list[Tensor]) -> int:
    drawn = config.rollout.batch_size * config.window_tokens
    per_epoch = config.run.updates_per_epoch or max(1, sum(windows.numel() for windows in train) // drawn)
    return config.run.num_epochs * per_epoch


def _update_settings(settings: Settings, updates: int) -> UpdateSettings:
    ppo = settings.config.ppo
    steps = updates * ppo.epochs * ppo.minibatches
    return UpdateSettings(
        epochs=ppo.epochs,
        temperature=settings.config.rollout.temperature,
        ptx_coef=ppo.ptx_coef,
        value_clip_range=ppo.value_clip_range,
        early_stop_kl=ppo.early_stop_kl,
        policy_lr=Schedule(ppo.policy_lr, settings.training.scheduler, steps),
        value_lr=Schedule(ppo.value_lr, settings.training.scheduler, steps),
    )


def _networks(
    settings: Settings, vocab_size: int, topology: Topology
) -> tuple[TrainEngine, TrainEngine, FrozenEngine, PolicyNetwork]:
    """Policy, value, frozen, and the hook-free replica that generates."""
    config, json = settings.config, settings.training
    dtype = torch.bfloat16 if json.bf16.enabled else torch.float32
    shapes, seed, loss = config.model, config.run.seed, config.engine.loss
    policy = build_policy(shapes.policy, vocab_size, dtype, seed, loss).to(topology.device)
    value = build_value(shapes.value, vocab_size, dtype, seed + 1).to(topology.device)
    frozen = build_copy(shapes.policy, vocab_size, dtype, loss)
    if config.engine.backend == "single":
        from destruct.engine.single import SingleEngine, SingleFrozen

        engines = [
            SingleEngine(module, json.optimizer, json.gradient_accumulation_steps, config.ppo.max_grad_norm)
            for module in (policy, value)
        ]
        return engines[0], engines[1], SingleFrozen(frozen.to(topology.device)), policy
    from destruct.engine.deepspeed import DeepSpeedEngine, DeepSpeedFrozen

    replica = build_copy(shapes.policy, vocab_size, dtype, loss).to(topology.device)
    filled = settings.deepspeed()
    return (
        DeepSpeedEngine(policy, filled["policy"], topology),
        DeepSpeedEngine(value, filled["value"], topology),
        DeepSpeedFrozen(frozen, filled["frozen"], topology),
        replica,
    )
