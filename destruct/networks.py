"""Makes the networks and their engines: the one file that names a backend's classes."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from destruct.checkpoint.contents import Networks
from destruct.config.settings import Settings
from destruct.engine.base import InferenceEngine, TrainEngine
from destruct.engine.borrowing import borrow
from destruct.engine.single import SingleEngine, SingleFrozen
from destruct.engine.topology import Topology
from destruct.errors import DestructError
from destruct.exits import Exit
from destruct.models.documents import check_documents
from destruct.models.policy import PolicyNetwork, build_copy, build_policy, check_head, network_config, take_buffers
from destruct.models.pretrained import check_fit
from destruct.models.reward_model import Reader, RewardModel, build_reward_model, reward_model_reader
from destruct.models.value import ValueNetwork, build_value
from destruct.ops.dispatch import fastest, implementation
from destruct.rollout.reward_model import reward_model
from destruct.rollout.rewards import Term
from destruct.seeding import derive


@dataclass(frozen=True, slots=True)
class Architectures:
    """The configs of the networks, read before anything expensive starts."""

    policy: PreTrainedConfig
    value: PreTrainedConfig
    reader: Reader | None  # of the reward model

    def vocab_size(self, tokens: int) -> int:
        """Entries of every embedding: a pretrained policy may sample ids that its tokenizer does not use."""
        return max(tokens, self.policy.vocab_size)


def read_architectures(settings: Settings) -> Architectures:
    """Read the configs of pretrained models, local or from the hub; those from scratch need none.

    Raises:
        DestructError: a model cannot be had, or cannot be trained here.
    """
    model, reward = settings.config.model, settings.config.reward.model
    policy = network_config("model.policy", model.policy, 0, model.attention)
    value = network_config("model.value", model.value, 0, model.attention)
    return Architectures(policy, value, reward_model_reader(reward.path, reward.revision) if reward.path else None)


def check_sizes(settings: Settings, architectures: Architectures, vocab_size: int) -> None:
    """Refuse pretrained models that the tokenizer or the window does not fit.

    Raises:
        DestructError: naming the model.
    """
    config = settings.config
    if config.model.policy.path is not None:
        check_fit("model.policy", architectures.policy, vocab_size, config.window_tokens)
    if config.model.value.path is not None:
        check_fit("model.value", architectures.value, architectures.vocab_size(vocab_size), config.window_tokens)


@dataclass(frozen=True, slots=True)
class HeadPlan:
    """How the fused loss is computed, a pure function of the config, the model and the kind of device."""

    loss: str  # a key of `destruct.ops.dispatch.IMPLEMENTATIONS`
    chunk_rows: int  # rows of logits that it holds at a time
    vocab_size: int
    dtype: torch.dtype

    def __str__(self) -> str:
        rows = "all rows" if self.chunk_rows == sys.maxsize else f"{self.chunk_rows} rows"
        return f"{self.loss}, {rows} of {self.vocab_size} logits at a time, {str(self.dtype).removeprefix('torch.')}"


def choose_loss(settings: Settings, device: torch.device) -> str:
    """The implementation of the fused loss, which is there and runs on `device`.

    Raises:
        DestructError: the GPU or the package that it needs is not there.
    """
    asked = settings.config.engine.loss
    name = fastest(device) if asked == "auto" else asked
    if name == "triton" and device.type != "cuda":
        raise DestructError(f"engine.loss=triton runs on a GPU, and this is {device}", "set engine.loss: auto")
    try:
        implementation(name)
    except ValueError as error:
        raise DestructError(f"engine.loss={name}: {error}", "set engine.loss: auto", Exit.ENVIRONMENT) from error
    return name


def plan_head(settings: Settings, architectures: Architectures, tokens: int, topology: Topology) -> HeadPlan:
    """The implementation of the fused loss and its rows per chunk.

    Args:
        tokens: of the tokenizer's vocabulary.

    Raises:
        DestructError: as `choose_loss` does.
    """
    name, vocab, dtype = choose_loss(settings, topology.device), architectures.vocab_size(tokens), _dtype(settings)
    chunk_rows = implementation(name).rows_per_chunk(vocab, dtype, settings.config.engine.loss_chunk_mib)
    return HeadPlan(name, chunk_rows, vocab, dtype)


def _dtype(settings: Settings) -> torch.dtype:
    return torch.bfloat16 if settings.training.bf16.enabled else torch.float32


@dataclass(frozen=True, slots=True)
class Made:
    """The engines, and what else the run asks of its models."""

    networks: Networks
    replica: PolicyNetwork  # the policy without hooks, which samples
    reward_model: Term | None


def make_networks(settings: Settings, architectures: Architectures, vocab_size: int, topology: Topology) -> Made:
    """Make every network, its engine around it.

    Args:
        vocab_size: of the tokenizer.

    Raises:
        DestructError: pretrained weights cannot be read, a model's logits are not hidden states times head, or it lets
            documents see each other.
    """
    maker = _Maker(settings, architectures, architectures.vocab_size(vocab_size), topology)
    made = MAKERS[settings.config.engine.backend](maker)
    for copy in made.networks.copies.values():
        copy.refresh(made.networks.policy)  # of whatever memory held, a checkpoint of the warm-up would keep it
    if settings.config.model.policy.path is not None:
        if settings.config.rollout.gather == "once":
            made.networks.policy.fill(made.replica)
        check_head(made.replica)
    _check_documents(settings, made.networks, topology.device)
    return made


def _check_documents(settings: Settings, networks: Networks, device: torch.device) -> None:
    """Refuse pretrained models that do not keep the documents of a row apart; those from scratch do."""
    model, policy, value = settings.config.model, networks.policy, networks.value
    if model.policy.path is not None:

        def logits(tokens: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
            return policy(tokens, rows, None, positions)

        check_documents("model.policy", policy.module, logits, device)
    if model.value.path is not None:
        check_documents("model.value", value.module, value, device)


@dataclass(frozen=True, slots=True)
class _Maker:
    """The networks of a run, without engines."""

    settings: Settings
    architectures: Architectures
    vocab_size: int
    topology: Topology

    @property
    def dtype(self) -> torch.dtype:
        return _dtype(self.settings)

    @property
    def head(self) -> HeadPlan:
        return plan_head(self.settings, self.architectures, self.vocab_size, self.topology)

    def weights(self, role: str) -> int:
        return derive(self.settings.config.run.seed, "weights", role) >> 1

    def policy(self, fsdp_ranks: int = 1) -> PolicyNetwork:
        model = self.settings.config.model
        return build_policy(
            model.policy,
            self.vocab_size,
            self.dtype,
            self.weights("policy"),
            self.head.loss,
            model.attention,
            model.activation_checkpointing,
            self.head.chunk_rows,
            fsdp_ranks,
        ).to(self.topology.device)

    def value(self, fsdp_ranks: int = 1) -> ValueNetwork:
        model = self.settings.config.model
        arguments = (self.dtype, self.weights("value"), model.attention, model.activation_checkpointing, fsdp_ranks)
        return build_value(model.value, self.vocab_size, *arguments).to(self.topology.device)

    def copy(self, policy: nn.Module) -> PolicyNetwork:
        model = self.settings.config.model
        head = self.head
        network = build_copy(model.policy, self.vocab_size, self.dtype, head.loss, model.attention, head.chunk_rows)
        take_buffers(network, policy)
        return network

    def replica(self, policy: TrainEngine) -> PolicyNetwork:
        """The policy without an engine's hooks, which samples."""
        borrows = self.settings.config.rollout.gather == "layers"
        # Made where it stays: a large model is not put into the host's memory first.
        with torch.device("meta") if borrows else self.topology.device:
            network = self.copy(policy.module)
        if borrows:
            borrow(network, policy, self.topology.device)
        return network

    def classifier(self, fsdp_ranks: int = 1) -> RewardModel | None:
        model = self.settings.config.reward.model
        return None if model.path is None else build_reward_model(model.path, model.revision, self.dtype, fsdp_ranks)

    def term(self, engine: InferenceEngine) -> Term:
        assert self.architectures.reader is not None
        return reward_model(engine, self.architectures.reader)


def _single(maker: _Maker) -> Made:
    settings, device = maker.settings, maker.topology.device
    json = settings.training
    arguments = (json.optimizer, json.gradient_accumulation_steps, settings.config.ppo.max_grad_norm)
    policy = maker.policy()
    networks = Networks(
        policy=SingleEngine(policy, *arguments),
        value=SingleEngine(maker.value(), *arguments),
        frozen=SingleFrozen(maker.copy(policy).to(device)),
        initial=SingleFrozen(maker.copy(policy).to(device)) if settings.config.kl.reference == "initial" else None,
    )
    classifier = maker.classifier()
    term = None if classifier is None else maker.term(SingleFrozen(classifier.to(device)))
    return Made(networks, policy, term)


def _fsdp(maker: _Maker) -> Made:
    from destruct.engine.fsdp import FsdpEngine, FsdpFrozen

    settings, topology = maker.settings, maker.topology
    json, offload, ranks = settings.training, settings.frozen.zero_optimization.offload_param, topology.world_size
    arguments = (json.optimizer, json.gradient_accumulation_steps, settings.config.ppo.max_grad_norm, topology)
    policy = FsdpEngine(maker.policy(ranks), *arguments)

    def frozen() -> FsdpFrozen:
        with torch.device("meta"):
            network = maker.copy(policy.module)
        return FsdpFrozen(network, offload, topology)

    networks = Networks(
        policy=policy,
        value=FsdpEngine(maker.value(ranks), *arguments),
        frozen=frozen(),
        initial=frozen() if settings.config.kl.reference == "initial" else None,
    )
    classifier = maker.classifier(ranks)
    term = None if classifier is None else maker.term(FsdpFrozen(classifier, offload, topology))
    return Made(networks, maker.replica(policy), term)


def _deepspeed(maker: _Maker) -> Made:
    from destruct.engine.deepspeed import DeepSpeedEngine, DeepSpeedFrozen, loading_in_shards, made_in_shards

    model, topology, filled = maker.settings.config.model, maker.topology, maker.settings.deepspeed()
    folders = maker.settings.offload_folders()

    def loading(path: str | None, role: str) -> AbstractContextManager[None]:
        # From scratch the weights are drawn on the CPU, by one generator, and equal those of the other backends.
        return nullcontext() if path is None else loading_in_shards(filled[role])

    def frozen() -> DeepSpeedFrozen:
        with made_in_shards(filled["frozen"]):
            network = maker.copy(policy)
        return DeepSpeedFrozen(network, filled["frozen"], topology, folders.frozen)

    with loading(model.policy.path, "policy"):
        policy = maker.policy()
    with loading(model.value.path, "value"):
        value = maker.value()
    with loading_in_shards(filled["frozen"]):
        classifier = maker.classifier()
    networks = Networks(
        policy=DeepSpeedEngine(policy, filled["policy"], topology, folders),
        value=DeepSpeedEngine(value, filled["value"], topology, folders),
        frozen=frozen(),
        initial=frozen() if maker.settings.config.kl.reference == "initial" else None,
    )
    rewards = (filled["frozen"], topology, folders.frozen)
    term = None if classifier is None else maker.term(DeepSpeedFrozen(classifier, *rewards))
    return Made(networks, maker.replica(networks.policy), term)


MAKERS: dict[str, Callable[[_Maker], Made]] = {"deepspeed": _deepspeed, "fsdp": _fsdp, "single": _single}
"""What makes the engines of each `engine.backend`."""
