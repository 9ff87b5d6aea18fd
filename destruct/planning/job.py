"""What is planned: a validated run, the sizes of its networks, the devices, and how often each network is called."""

from dataclasses import dataclass

from destruct.config.offload import Offload
from destruct.config.settings import Settings
from destruct.minibatch import together
from destruct.planning.hardware import Hardware
from destruct.planning.networks import Decoder, from_config, from_shape, read_model_config, read_vocabulary
from destruct.planning.parts import Place

MIB = 2**20
WINDOWS_PER_FORWARD = 16  # as destruct/evaluation.py scores held-out windows, and per_position reads them
LOGITS_AT_ONCE = 2**23  # as destruct/rollout/per_position.py draws from them


@dataclass(frozen=True, slots=True)
class Job:
    """A run on devices.  A *pass* is one forward of one micro-batch; counts are a rank's, of one update."""

    settings: Settings
    policy: Decoder
    value: Decoder
    reward_model: Decoder | None
    hardware: Hardware
    per_node: int  # devices of a machine

    @property
    def world(self) -> int:
        """Ranks, one a device."""
        return self.settings.world_size

    @property
    def nodes(self) -> int:
        """Machines."""
        return -(-self.world // self.per_node)

    @property
    def host_memory(self) -> float:
        """Bytes of a machine's host; of CPU ranks, of the machine that they share."""
        ranks = min(self.world, self.per_node) if self.hardware.is_cpu else self.per_node
        return self.hardware.host_memory * ranks

    @property
    def way(self) -> str:
        """`zero0` to `zero3`, `fsdp` or `single`."""
        backend = self.settings.config.engine.backend
        return f"zero{self.settings.training.zero_optimization.stage}" if backend == "deepspeed" else backend

    @property
    def itemsize(self) -> int:
        """Bytes of a weight as it is multiplied."""
        return 2 if self.settings.training.bf16.enabled else 4

    @property
    def accumulation(self) -> int:
        """Micro-batches of a rank in one optimizer step."""
        return self.settings.training.gradient_accumulation_steps

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a rank in one pass over the rollouts."""
        return self.settings.config.ppo.minibatches * self.accumulation

    @property
    def window(self) -> int:
        """T: tokens of a rollout."""
        return self.settings.config.window_tokens

    @property
    def has_ptx(self) -> bool:
        """Whether the true continuations are trained on besides."""
        return self.settings.config.ppo.ptx_coef > 0

    @property
    def policy_sequences(self) -> int:
        """Sequences of a micro-batch of the policy: with PTX the data's own windows ride along, where they differ."""
        apart = self.has_ptx and self.settings.config.rollout.mode == "generate"
        return self.settings.micro_batch * (2 if apart else 1)

    @property
    def policy_rows(self) -> int:
        """N: rows of the fused loss in one micro-batch, at most."""
        return self.settings.micro_batch * self.settings.config.rollout.response_tokens * (2 if self.has_ptx else 1)

    @property
    def train_passes(self) -> int:
        """Forwards with a backward, of each training network, when no epoch is stopped early."""
        return self.settings.config.ppo.epochs * self.micro_batches

    @property
    def together(self) -> int:
        """Micro-batches of a forward that several share: all without a backward but those of the old logprobs."""
        return min(self.accumulation, together(self.settings.micro_batch * self.window))

    @property
    def shared_sequences(self) -> int:
        """Rollouts of such a forward."""
        return self.settings.micro_batch * self.together

    @property
    def shared_passes(self) -> int:
        """Such forwards of a rank in one pass over the rollouts."""
        return self.settings.config.ppo.minibatches * -(-self.accumulation // self.together)

    @property
    def early_stop_passes(self) -> int:
        """Forwards of the policy between epochs."""
        ppo = self.settings.config.ppo
        return (ppo.epochs - 1) * self.shared_passes if ppo.early_stop_kl is not None else 0

    @property
    def reference_passes(self) -> int:
        """Forwards of the model that the KL is measured to, and of the frozen one as a reward."""
        also = "frozen_likelihood" in self.settings.config.reward.terms
        return (2 if also else 1) * self.shared_passes

    @property
    def steps(self) -> int:
        """Optimizer steps of each network."""
        return self.settings.config.ppo.epochs * self.settings.config.ppo.minibatches

    @property
    def rollouts_per_rank(self) -> int:
        """Rollouts that the fullest rank samples at once."""
        return -(-self.settings.config.rollout.batch_size // self.world)

    @property
    def loss(self) -> str:
        """The fused loss's implementation on this device."""
        asked = self.settings.config.engine.loss
        return asked if asked != "auto" else "chunked" if self.hardware.is_cpu else "triton"

    def offload(self, which: str) -> Offload | None:
        """`offload_param` or `offload_optimizer` of the training engines, where anything is offloaded."""
        return self._offload(getattr(self.settings.training.zero_optimization, which))

    @property
    def frozen_offload(self) -> Offload | None:
        """`offload_param` of the frozen engine, where anything is offloaded."""
        return self._offload(self.settings.frozen.zero_optimization.offload_param)

    def _offload(self, offload: Offload | None) -> Offload | None:
        off = offload is not None and offload.device != "none" and self.way != "single"
        return offload if off else None

    def place(self, offload: Offload | None) -> Place:
        """Where what is offloaded so rests."""
        if offload is None:
            return "device"
        return "files" if offload.device == "nvme" else "host"

    def copied_in(self, offload: Offload | None) -> bool:
        """Whether weights that are offloaded so are copied to be used: to a CPU they are there, whole on one rank."""
        return offload is not None and not self.hardware.is_cpu


def round_forwards(job: Job) -> float:
    """Forwards of a rank that score the panels of a round, divided by the updates between two rounds.

    All ranks make equally many, the last of a source perhaps on no window; a budget may make panels smaller.
    """
    config = job.settings.config
    share = -(-config.curriculum.difficulty_sample_size // job.world)
    return len(config.data.sources) * -(-share // WINDOWS_PER_FORWARD) / config.frozen.refresh_every


def job_of(settings: Settings, hardware: Hardware, per_node: int) -> Job:
    """Read the sizes of the networks that a run names.

    Raises:
        DestructError: a pretrained model's config cannot be had, or its layers are not known.
    """
    model, reward = settings.config.model, settings.config.reward.model
    tokenizer = settings.config.data.tokenizer
    vocab = tokenizer.vocab_size
    if tokenizer.path is not None and model.policy.path is None:
        vocab = read_vocabulary("data.tokenizer.path", tokenizer.path)
    pretrained: dict[str, Decoder | None] = {}
    named = {
        "model.policy": (model.policy.path, model.policy.revision),
        "model.value": (model.value.path, model.value.revision),
        "reward.model": (reward.path, reward.revision),
    }
    for key, (path, revision) in named.items():
        pretrained[key] = None
        if path is not None:
            config = read_model_config(f"{key}.path", path, revision)
            pretrained[key] = from_config(f"{key}.path", path, config, scalar=key != "model.policy")
    policy = pretrained["model.policy"] or from_shape(model.policy, vocab)
    # A value network from scratch has the policy's vocabulary (destruct/networks.py).
    value = pretrained["model.value"] or from_shape(model.value, max(vocab, policy.vocab))
    return Job(settings, policy, value, pretrained["reward.model"], hardware, per_node)
