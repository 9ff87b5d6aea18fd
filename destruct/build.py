"""The composition root: turns validated settings into a run, cheapest checks first."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from destruct import run_folder, setbacks
from destruct.batch import RolloutBatch
from destruct.checkpoint import contents
from destruct.checkpoint.identity import find_checkpoint
from destruct.checkpoint.state import TrainState
from destruct.checkpoint.store import CheckpointStore
from destruct.config.curriculum import CurriculumConfig
from destruct.config.settings import Config, Settings
from destruct.curriculum.dials import strategy_from
from destruct.curriculum.probing import Prober, Windows
from destruct.curriculum.progress import ProgressEstimator
from destruct.curriculum.round import Curriculum, Panels
from destruct.data.loader import Loader
from destruct.data.mixture import Mixture
from destruct.data.order import Order, Shuffled, Streamed
from destruct.data.stream_pieces import StreamPieces
from destruct.drift import probe_from
from destruct.engine.schedule import Schedule
from destruct.engine.topology import Topology, local_ranks
from destruct.errors import DestructError
from destruct.heartbeat import HEART
from destruct.inputs import Inputs, read_inputs
from destruct.networks import (
    Architectures,
    Made,
    check_sizes,
    choose_loss,
    make_networks,
    plan_head,
    read_architectures,
)
from destruct.planning.here import memory_warning
from destruct.ppo.update import UpdateSettings
from destruct.prompting import encode_prompts
from destruct.rollout.generate import sampling
from destruct.rollout.rewards import REWARDS, Reward, RewardContext, Term, frozen_likelihood
from destruct.rollout.user_terms import user_term
from destruct.run import Run
from destruct.tracking.console import Screen
from destruct.tracking.opening import open_sinks


def build(settings: Settings, topology: Topology, screen: Screen, started: float) -> Run:
    """Make the run: curriculum, checkpoint, models' configs, data, reward functions, then networks, then resume.

    Args:
        started: time.perf_counter() at the start of this process.

    Raises:
        DestructError: anything a person can put right.
    """
    config, names = settings.config, list(settings.config.data.sources)
    _check_curriculum(config, screen)
    claimed = run_folder.claim(settings, topology, screen)
    store = CheckpointStore(run_folder.path(settings) / "checkpoints", topology, config.run.keep_checkpoints)
    checkpoint = find_checkpoint(settings, store, screen.say)
    topology.together(lambda: _check_machine(settings, topology))
    models = topology.together(lambda: read_architectures(settings))
    inputs = read_inputs(settings, topology, screen, checkpoint)
    tokenizer, context = inputs.tokenizer, RewardContext(config.reward.ngram, inputs.tokenizer)
    check_sizes(settings, models, tokenizer.vocab_size)
    prompts = encode_prompts(settings.prompts, tokenizer, _longest_prompt(settings, models))
    texts = topology.together(lambda: _tried_terms(config, context, inputs))
    # Nothing about the input can be wrong from here on: only now is an older folder put aside.
    derived = {"engine.loss": str(plan_head(settings, models, tokenizer.vocab_size, topology))}
    folder = run_folder.prepare(settings, topology, screen, tokenizer, models.policy, checkpoint, derived, claimed)
    curriculum = _curriculum(config, inputs, topology)
    mixture, loader = topology.together(lambda: drawing(config, inputs))
    per_epoch = config.run.updates_per_epoch or max(1, sum(map(len, inputs.train)) // config.rollout.batch_size)
    updates = config.run.num_epochs * per_epoch
    _announce(settings, topology, screen, updates)
    made = HEART.during("making the networks")(make_networks)(settings, models, tokenizer.vocab_size, topology)
    state = TrainState(kl_coef=config.kl.coef, sources=names)
    if checkpoint is not None:
        state = _resume(checkpoint, store, made.networks, mixture, curriculum, topology, screen)
        screen.say(f"resumed after update {state.update} from {checkpoint}")
    return Run(
        settings=settings,
        topology=topology,
        folder=folder,
        claimed=claimed,
        screen=screen,
        sinks=open_sinks(settings, folder, state.done, screen.say) if topology.is_first else None,
        names=names,
        inputs=inputs,
        prompts=prompts,
        mixture=mixture,
        loader=loader,
        curriculum=curriculum,
        reward=Reward(config.reward.terms, texts, _model_terms(config, made), context),
        networks=made.networks,
        replica=made.replica,
        sampling=sampling(tokenizer, config.rollout.temperature, config.rollout.stop),
        probe=probe_from(state.probe, topology.device) if state.probe else None,
        store=store,
        updates=updates,
        updates_per_epoch=per_epoch,
        update_settings=_update_settings(settings, updates),
        state=state,
        started=started,
        seconds_before=state.seconds,
    )


def _resume(
    checkpoint: Path,
    store: CheckpointStore,
    networks: contents.Networks,
    mixture: Mixture,
    curriculum: Curriculum,
    topology: Topology,
    screen: Screen,
) -> TrainState:
    """Put everything that goes on to where a verified checkpoint was taken, the pointers of its folder too."""
    saved = contents.load(checkpoint, networks, store)
    state = saved.of_sources(list(mixture.names))
    for line in _come_and_gone(saved, state, dict(zip(mixture.names, curriculum.weights.tolist(), strict=True))):
        screen.say(line)
    topology.together(lambda: mixture.load_state_dict(state.mixture))
    curriculum.load_state_dict(state.curriculum)
    if store.holds(checkpoint):
        store.stand_at(checkpoint, state)
        _leave_out(checkpoint, mixture, topology, screen)
    return state


def _leave_out(checkpoint: Path, mixture: Mixture, topology: Topology, screen: Screen) -> None:
    """Let the mixture draw on behind what the run diverged on since the checkpoint, if it did."""
    here = mixture.state_dict()
    there = topology.first_rank_makes(lambda: setbacks.beyond(checkpoint.parents[1], checkpoint.name, here))
    if there["draws"] > here["draws"]:
        screen.say(f"training diverged after that: {there['draws'] - here['draws']} batches are left out")
        topology.together(lambda: mixture.load_state_dict(there))


def _come_and_gone(saved: TrainState, state: TrainState, start: dict[str, float]) -> Iterator[str]:
    """Lines that say what a resume under other sources changes.

    Args:
        saved: the state of the checkpoint.
        state: the same, of the sources of this run.
        start: shares (S,) that the weights of this run's sources begin with.
    """
    for name in state.sources:
        if name not in saved.sources:
            yield f"source {name!r} is new: it starts at its prior share of {start[name]:.1%}"
    for name in saved.sources:
        if name not in state.sources:
            yield f"source {name!r} is gone: its share falls to the others"
    if saved.best_update != state.best_update:
        yield "the mean validation loss is over other sources than before: the best checkpoint is one from here on"


def _curriculum(config: Config, inputs: Inputs, topology: Topology) -> Curriculum:
    sizes = np.array([len(windows) * windows.window_tokens for windows in inputs.language], dtype=np.float64)
    token_bytes = inputs.tokenizer.token_bytes
    c, prior = config.curriculum, config.data.prior
    curriculum = make_curriculum(c, prior, inputs.held_out, inputs.language, token_bytes, sizes)
    # Machines may have other versions of LZMA, and ranks must draw alike.
    curriculum.compressed = topology.first_rank_makes(lambda: curriculum.compressed)
    return curriculum


def _check_machine(settings: Settings, topology: Topology) -> None:
    """Refuse what this rank's machine lacks.

    Raises:
        DestructError: the fused loss does not run here, or a folder for offloaded tensors takes none.
    """
    choose_loss(settings, topology.device)
    settings.offload_folders()


def _check_curriculum(config: Config, screen: Screen) -> None:
    """Refuse and warn before anything is read.

    Raises:
        DestructError: the dials are unstable, or contradict the priors.
    """
    c = config.curriculum
    if config.warmup.lm_updates == 0 and config.model.policy.path is None:
        screen.say("warning: warmup.lm_updates=0: the model starts PPO from random weights and cannot speak yet")
    if c.strategy == "second_order" and c.lam == 0:
        screen.say("warning: curriculum.lam=0 leaves the weights undamped, which is never stable; set it above 0")
    strategy_from(c, config.data.prior, np.ones(len(config.data.prior)))


def make_curriculum(
    c: CurriculumConfig,
    prior: dict[str, float],
    held_out: Sequence[Windows],
    training: Sequence[Windows],
    token_bytes: np.ndarray,
    sizes: np.ndarray,
) -> Curriculum:
    """The curriculum over the sources of `prior`.

    Args:
        prior: w0 of each source, by name; lists and arrays are in its order.
        held_out, training: windows to estimate with.
        token_bytes: (V,) bytes of each token.
        sizes: (S,) training tokens.

    Raises:
        DestructError: the dials are refused.
    """
    strategy = strategy_from(c, prior, sizes)
    size, compress = c.difficulty_sample_size, c.plateau_retry
    panels = Panels(held_out, training, size, c.probe_budget, compress, relative=c.unit == "relative")
    prober = Prober(token_bytes.astype(np.int64) if c.unit == "bits_per_byte" else None)
    return Curriculum(list(prior), ProgressEstimator(len(prior), c.kappa), strategy, panels, prober)


def _announce(settings: Settings, topology: Topology, screen: Screen, updates: int) -> None:
    """What starts now; and a warning where the plan says that it does not fit this machine."""
    backend, device = settings.config.engine.backend, None
    screen.say(f"starting {topology.world_size} rank(s), {backend}, {updates} updates planned")
    if topology.device.type == "cuda":
        properties = torch.cuda.get_device_properties(topology.device)
        device = properties.name, properties.total_memory
    if topology.is_first and (warning := memory_warning(settings, local_ranks(), device)):
        screen.say(warning)


def _longest_prompt(settings: Settings, architectures: Architectures) -> int:
    """Most tokens of a prompt of the user's that leave room for its continuation."""
    context = getattr(architectures.policy, "max_position_embeddings", None) or 2**30
    return context - settings.config.prompts.response_tokens


def _tried_terms(config: Config, context: RewardContext, inputs: Inputs) -> dict[str, Term]:
    """The reward terms that read texts, after they have scored the first held-out windows as if sampled.

    Raises:
        DestructError: a user's function cannot be had, fails, or judges whole responses where tokens are sampled.
    """
    teacher_forced = config.rollout.mode == "per_position"
    terms = {name: REWARDS.get(name) or user_term(name) for name in config.reward.terms if name not in MODEL_TERMS}
    for name, term in terms.items():
        if teacher_forced and not term.per_token:
            raise DestructError(
                f"reward term {name!r} judges a whole response, and rollout.mode=per_position samples single tokens",
                f"set {name.rpartition(':')[2]}.per_token = True in its module, and return a number for each token",
            )
    prompts = [batch.select(torch.tensor([0])) for batch in inputs.held_out_prompts]
    for batch in prompts:
        said = batch.windows[:, config.rollout.prompt_tokens :]
        none = torch.zeros(1, dtype=torch.bool)
        rollouts = RolloutBatch(batch, said, torch.ones_like(said, dtype=torch.bool), none, teacher_forced)
        Reward(dict.fromkeys(terms, 1.0), terms, {}, context).of_texts(rollouts)
    return terms


def _model_terms(config: Config, made: Made) -> dict[str, Term]:
    terms = {"frozen_likelihood": frozen_likelihood(made.networks.frozen), "reward_model": made.reward_model}
    return {name: term for name, term in terms.items() if name in config.reward.terms and term is not None}


def drawing(config: Config, inputs: Inputs) -> tuple[Mixture, Loader]:
    """What decides the next pieces of the sources, and what reads them.

    Raises:
        DestructError: a stream cannot be read.
    """
    sources = config.data.sources
    orders: list[Order] = []
    for (name, source), pieces in zip(sources.items(), inputs.train, strict=True):
        if isinstance(pieces, StreamPieces):
            orders.append(Streamed(name, pieces, config.run.seed, source.most_epochs))
        else:
            orders.append(Shuffled(name, len(pieces), config.run.seed, pieces.sizes, source.most_epochs))
    mixture = Mixture(orders, [name for name, source in sources.items() if source.on_exhausted == "stop"])
    return mixture, Loader(inputs.train, orders)


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


MODEL_TERMS = ("frozen_likelihood", "reward_model")
"""Reward terms that run a model: they exist once the networks do."""
