"""The composition root: turns validated settings into a run.  No other file names the concrete classes."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from destruct import run_folder
from destruct.batch import PromptBatch, RolloutBatch
from destruct.checkpoint import contents
from destruct.checkpoint.identity import check_data, find_checkpoint
from destruct.checkpoint.state import TrainState
from destruct.checkpoint.store import CheckpointStore
from destruct.config.settings import Config, Settings
from destruct.curriculum.estimates import ProgressEstimator
from destruct.curriculum.round import Curriculum
from destruct.curriculum.strategies import DynamicsSettings, Strategy, make_strategy
from destruct.data.mixture import Mixture
from destruct.data.sources import Documents, load_sources
from destruct.data.tokenizing import Tokenizer, train_tokenizer
from destruct.data.windows import SourceData, pack_sources
from destruct.engine.schedule import Schedule
from destruct.engine.topology import Topology
from destruct.errors import DestructError
from destruct.evaluation import ValidationSet
from destruct.exits import Exit
from destruct.models.policy import PolicyNetwork, build_copy, build_policy
from destruct.models.value import build_value
from destruct.ppo.update import UpdateSettings
from destruct.rollout.rewards import Reward, RewardContext
from destruct.run import Run
from destruct.seeding import derive, permuted
from destruct.tracking.console import Screen
from destruct.tracking.sinks import Sinks, log_to_file


def build(settings: Settings, topology: Topology, screen: Screen, started: float) -> Run:
    """Make the run, cheapest checks first: curriculum, checkpoint, data, reward functions, then networks, then resume.

    Args:
        started: time.perf_counter() at the start of this process.

    Raises:
        DestructError: anything a person can put right.
    """
    config = settings.config
    names = list(config.data.sources)
    strategy, c = _strategy(config, screen), config.curriculum
    store = CheckpointStore(run_folder.path(settings) / "checkpoints", topology, config.run.keep_checkpoints)
    checkpoint = find_checkpoint(settings, store)
    screen.say("reading and tokenizing the sources")
    tokenizer, sources, digest = _read_data(settings, topology, checkpoint)
    reward = topology.together(lambda: _tried_reward(config, tokenizer, sources))
    train = [torch.from_numpy(source.train.tokens).long() for source in sources]
    held_out = [_shuffled_held_out(source, config.run.seed) for source in sources]
    # Nothing about the input can be wrong from here on: only now is an older folder put aside.
    folder = run_folder.prepare(settings, topology, screen, tokenizer, checkpoint, store.holds(checkpoint))
    log_to_file(folder, topology.rank)
    curriculum = Curriculum(ProgressEstimator(len(names), c.kappa), strategy, held_out, c.difficulty_sample_size)
    mixture = Mixture([len(windows) for windows in train], config.run.seed, names)
    per_epoch = _updates_per_epoch(config, train)
    updates = config.run.num_epochs * per_epoch
    screen.say(_windows_line(sources, config.window_tokens))
    screen.say(f"starting {topology.world_size} rank(s), {config.engine.backend}, {updates} updates planned")
    networks, replica = _networks(settings, tokenizer.vocab_size, topology)
    state = TrainState(kl_coef=config.kl.coef)
    if checkpoint is not None:
        state = _resume(checkpoint, store, networks, mixture, curriculum)
        screen.say(f"resumed after update {state.update} from {checkpoint}")
    return Run(
        settings=settings,
        topology=topology,
        folder=folder,
        screen=screen,
        sinks=Sinks(folder, state.update) if topology.is_first else None,
        tokenizer=tokenizer,
        names=names,
        data_digest=digest,
        train_windows=train,
        validation_sets=_validation_sets(sources, held_out, config.run.validation_windows, tokenizer),
        mixture=mixture,
        curriculum=curriculum,
        reward=reward,
        policy=networks.policy,
        value=networks.value,
        frozen=networks.frozen,
        replica=replica,
        store=store,
        updates=updates,
        updates_per_epoch=per_epoch,
        update_settings=_update_settings(settings, updates),
        state=state,
        started=started,
        seconds_before=state.seconds,
    )


def _resume(
    checkpoint: Path, store: CheckpointStore, networks: contents.Networks, mixture: Mixture, curriculum: Curriculum
) -> TrainState:
    """Put everything that goes on to where a verified checkpoint was taken, the pointers of its folder too."""
    state = contents.load(checkpoint, networks)
    mixture.load_state_dict(state.mixture)
    curriculum.load_state_dict(state.curriculum)
    if store.holds(checkpoint):
        store.stand_at(checkpoint, contents.best_checkpoint(store, state))
    return state


def _strategy(config: Config, screen: Screen) -> Strategy:
    c, prior = config.curriculum, np.array(list(config.data.prior.values()))
    if config.warmup.lm_updates == 0:
        screen.say("warning: warmup.lm_updates=0: the model starts PPO from random weights and cannot speak yet")
    if c.strategy == "second_order" and c.lam == 0:
        screen.say("warning: curriculum.lam=0 leaves the weights undamped, which is never stable; set it above 0")
    settings = DynamicsSettings(c.eta, c.mu, c.lam, c.floor / len(prior), c.z, c.signal, c.projection)
    return make_strategy(c.strategy, prior, settings)


def _tried_reward(config: Config, tokenizer: Tokenizer, sources: list[SourceData]) -> Reward:
    """The reward, after it has scored the first held-out windows as if their continuations had been sampled."""
    reward = Reward(config.reward.terms, RewardContext(config.reward.ngram, tokenizer))
    windows = torch.from_numpy(np.concatenate([source.validation.tokens[:1] for source in sources])).long()
    number, p = torch.arange(len(windows)), config.rollout.prompt_tokens
    prompts = PromptBatch(draw=0, prompt_tokens=p, windows=windows, source=number, sample=number)
    reward(RolloutBatch(prompts, windows, torch.ones_like(windows[:, p:], dtype=torch.bool), number < 0))
    return reward


def _equal_data(sources: list[SourceData], topology: Topology) -> str:
    """SHA-256 of all windows.  Every rank draws from the windows that it read itself, so all must have read the same.

    Raises:
        DestructError: they have not.
    """
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.train.tokens.tobytes() + source.validation.tokens.tobytes())
    others = topology.unlike_the_first(digest.digest())
    if others:
        raise DestructError(
            f"rank {others[0]} read other texts than rank 0",
            "give every machine the same files and the same Python version",
            Exit.ENVIRONMENT,
        )
    return digest.hexdigest()


def _read_data(
    settings: Settings, topology: Topology, checkpoint: Path | None
) -> tuple[Tokenizer, list[SourceData], str]:
    """Read, tokenize and pack, each rank for itself (a file may be missing on one machine alone); with a digest."""
    config = settings.config
    documents = topology.together(lambda: load_sources(config.data, config.run.seed))
    tokenizer = Tokenizer(topology.first_rank_makes(lambda: _tokenizer_text(settings, documents, checkpoint)))
    sources = topology.together(lambda: pack_sources(documents, config.data, config.window_tokens, tokenizer))
    digest = _equal_data(sources, topology)
    if checkpoint is not None:
        check_data(checkpoint, digest)
    return tokenizer, sources, digest


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


def _shuffled_held_out(source: SourceData, seed: int) -> Tensor:
    """A source's held-out windows (n, T) int64 in a fixed random order, so that the first n of them are a sample.

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
    order = permuted(np.arange(len(windows)), len(windows), derive(seed, "held out order", source.name))
    return torch.from_numpy(windows[order]).long()


def _validation_sets(
    sources: list[SourceData], held_out: list[Tensor], size: int, tokenizer: Tokenizer
) -> list[ValidationSet]:
    """Up to `size` held-out windows of each source; a window's first token is context only: its bytes do not count."""
    sets = []
    for source, windows in zip(sources, held_out, strict=True):
        scored = windows[:size, 1:].numpy()
        count = int(tokenizer.token_bytes[scored].sum())
        sets.append(ValidationSet(source.name, windows[:size], count, source.learnable))
    return sets


def _updates_per_epoch(config: Config, train: list[Tensor]) -> int:
    drawn = config.rollout.batch_size * config.window_tokens
    return config.run.updates_per_epoch or max(1, sum(windows.numel() for windows in train) // drawn)


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


def _networks(settings: Settings, vocab_size: int, topology: Topology) -> tuple[contents.Networks, PolicyNetwork]:
    """The engines, and the hook-free replica that generates."""
    config, json = settings.config, settings.training
    dtype = torch.bfloat16 if json.bf16.enabled else torch.float32
    shapes, loss = config.model, config.engine.loss

    def weights(role: str) -> int:
        return derive(config.run.seed, "weights", role) >> 1

    policy = build_policy(shapes.policy, vocab_size, dtype, weights("policy"), loss).to(topology.device)
    value = build_value(shapes.value, vocab_size, dtype, weights("value")).to(topology.device)
    frozen = build_copy(shapes.policy, vocab_size, dtype, loss)
    if config.engine.backend == "single":
        from destruct.engine.single import SingleEngine, SingleFrozen

        arguments = (json.optimizer, json.gradient_accumulation_steps, config.ppo.max_grad_norm)
        networks = contents.Networks(
            SingleEngine(policy, *arguments),
            SingleEngine(value, *arguments),
            SingleFrozen(frozen.to(topology.device)),
        )
        return networks, policy
    from destruct.engine.deepspeed import DeepSpeedEngine, DeepSpeedFrozen

    replica = build_copy(shapes.policy, vocab_size, dtype, loss).to(topology.device)
    filled = settings.deepspeed()
    networks = contents.Networks(
        DeepSpeedEngine(policy, filled["policy"], topology),
        DeepSpeedEngine(value, filled["value"], topology),
        DeepSpeedFrozen(frozen, filled["frozen"], topology),
    )
    return networks, replica
