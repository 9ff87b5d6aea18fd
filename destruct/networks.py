"""Makes the networks and their engines: the one file that names a backend's classes."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig

from destruct.checkpoint.contents import Networks
from destruct.config.settings import Settings
from destruct.engine.base import InferenceEngine
from destruct.engine.single import SingleEngine, SingleFrozen
from destruct.engine.topology import Topology
from destruct.models.policy import PolicyNetwork, build_copy, build_policy, check_head, network_config
from destruct.models.pretrained import check_fit
from destruct.models.reward_model import Reader, RewardModel, build_reward_model, reward_model_reader
from destruct.models.value import ValueNetwork, build_value
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
        DestructError: pretrained weights cannot be read, or the model's logits are not hidden states times head.
    """
    maker = _Maker(settings, architectures, architectures.vocab_size(vocab_size), topology)
    made = _single(maker) if settings.config.engine.backend == "single" else _deepspeed(maker)
    if settings.config.model.policy.path is not None:
        made.networks.policy.fill(made.replica)
        check_head(made.replica)
    return made


@dataclass(frozen=True, slots=True)
class _Maker:
    """The networks of a run, without engines."""

    settings: Settings
    architectures: Architectures
    vocab_size: int
    topology: Topology

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.settings.training.bf16.enabled else torch.float32

    @property
    def loss(self) -> str:
        return self.settings.config.engine.loss

    def weights(self, role: str) -> int:
        return derive(self.settings.config.run.seed, "weights", role) >> 1

    def policy(self) -> PolicyNetwork:
        model = self.settings.config.model
        arguments = (self.dtype, self.weights("policy"), self.loss, model.attention, model.activation_checkpointing)
        return build_policy(model.policy, self.vocab_size, *arguments).to(self.topology.device)

    def value(self) -> ValueNetwork:
        model = self.settings.config.model
        arguments = (self.dtype, self.weights("value"), model.attention, model.activation_checkpointing)
        return build_value(model.value, self.vocab_size, *arguments).to(self.topology.device)

    def copy(self) -> PolicyNetwork:
        model = self.settings.config.model
        return build_copy(model.policy, self.vocab_size, self.dtype, self.loss, model.attention)

    def classifier(self) -> RewardModel | None:
        model = self.settings.config.reward.model
        return None if model.path is None else build_reward_model(model.path, model.revision, self.dtype)

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
        frozen=SingleFrozen(maker.copy().to(device)),
        initial=SingleFrozen(maker.copy().to(device)) if settings.config.kl.reference == "initial" else None,
    )
    classifier = maker.classifier()
    term = None if classifier is None else maker.term(SingleFrozen(classifier.to(device)))
    return Made(networks, policy, term)


def _deepspeed(maker: _Maker) -> Made:
    from destruct.engine.deepspeed import DeepSpeedEngine, DeepSpeedFrozen, loading_in_shards, made_in_shards

    model, topology, filled = maker.settings.config.model, maker.topology, maker.settings.deepspeed()

    def loading(path: str | None, role: str) -> AbstractContextManager[None]:
        # From scratch the weights are drawn on the CPU, by one generator, and equal those of the other backends.
        return nullcontext() if path is None else loading_in_shards(filled[role])

    def frozen() -> DeepSpeedFrozen:
        with made_in_shards(filled["frozen"]):
            network = maker.copy()
        return DeepSpeedFrozen(network, filled["frozen"], topology)

    with loading(model.policy.path, "policy"):
        policy = maker.policy()
    with loading(model.value.path, "value"):
        value = maker.value()
    with loading_in_shards(filled["frozen"]):
        classifier = maker.classifier()
    networks = Networks(
        policy=DeepSpeedEngine(policy, filled["policy"], topology),
        value=DeepSpeedEngine(value, filled["value"], topology),
        frozen=frozen(),
        initial=frozen() if maker.settings.config.kl.reference == "initial" else None,
    )
    # Made where it stays: a large model is not put into the host's memory first.
    with topology.device:
        replica = maker.copy()
    term = None if classifier is None else maker.term(DeepSpeedFrozen(classifier, filled["frozen"], topology))
    return Made(networks, replica, term)
