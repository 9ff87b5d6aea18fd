"""The policy network pi_theta: a causal language model whose head computes the loss itself."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.utils import is_flash_attn_2_available

from destruct.config.model import LlamaShape, PolicyShape
from destruct.errors import DestructError
from destruct.exits import Exit
from destruct.models.attention import SDPA
from destruct.models.documents import body_states
from destruct.models.last_layer import let_read_rows_alone
from destruct.models.pretrained import load_weights, logit_map_of, read_config
from destruct.ops.head import FusedHead, HeadOutput, HeadRequest

LARGEST_HEAD_GAP = {torch.bfloat16: 2e-2, torch.float32: 1e-3}
"""Of our logits to the model's own, relative to the largest one; a product of another shape may round differently."""


class PolicyNetwork(nn.Module):
    """A transformers language model under `lm`, its head replaced by a `FusedHead` on the same Parameter.

    Args:
        loss, chunk_rows: of the head.

    The model gets positions and never an attention mask: where they begin again so does a document, which sees nothing
    of those before it; padding is a document of its own, or comes after all that is real.

    Raises:
        DestructError: the head has a bias.
    """

    def __init__(self, lm: PreTrainedModel, loss: str, chunk_rows: int | None = None):
        super().__init__()
        head = lm.get_output_embeddings()
        if getattr(head, "bias", None) is not None:
            raise DestructError(
                f"the head of {type(lm).__name__} has a bias; the fused loss is of hidden states times head",
                "name another model in model.policy.path",
            )
        lm.set_output_embeddings(FusedHead(head.weight, loss, logit_map_of(lm.config), chunk_rows))
        self.lm = lm
        let_read_rows_alone(self.body)

    @property
    def body(self) -> PreTrainedModel:
        """The decoder below the head."""
        return self.lm.base_model

    @property
    def head(self) -> FusedHead:
        """The head."""
        return self.lm.get_output_embeddings()

    def forward(
        self, tokens: Tensor, rows: Tensor, request: HeadRequest | None, positions: Tensor | None = None
    ) -> HeadOutput:
        """Run the body on `tokens` and the head on the hidden states at `rows`.

        Args:
            tokens: (n, T) int64; n may be 0 (the head then gets no row, but every layer is still called).
            rows: (N,) int64 indices into the n*T positions; the state at position t predicts token t + 1.
            request: what the head computes, see `FusedHead.forward`; logits for None.
            positions: (n, T) int64, see `body_states`.
        """
        hidden = body_states(self.body, tokens, positions, rows)
        return self.head.logits(hidden) if request is None else self.head(hidden, request)


@contextmanager
def speaking(network: PolicyNetwork) -> Iterator[None]:
    """While it lasts, the network is not in training: with checkpointing on, transformers would leave the cache out."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


def llama_config(shape: LlamaShape, vocab_size: int) -> LlamaConfig:
    """The transformers config of a shape; token ids beyond the vocabulary's are never special here."""
    values = shape.model_dump(exclude={"path", "revision", "rope_theta"})
    values["num_key_value_heads"] = shape.num_key_value_heads or shape.num_attention_heads
    values["rope_parameters"] = {"rope_type": "default", "rope_theta": shape.rope_theta}
    return LlamaConfig(vocab_size=vocab_size, bos_token_id=None, eos_token_id=None, pad_token_id=None, **values)


def network_config(key: str, shape: LlamaShape, vocab_size: int, attention: str = "sdpa") -> PreTrainedConfig:
    """What transformers builds the network of `shape` from.

    Args:
        key: `model.policy` or `model.value`, for errors.
        vocab_size: of a network from scratch; a pretrained one has its own.
        attention: `sdpa`, `eager` or `flash_attention_2`.

    Raises:
        DestructError: as `read_config` does; or this kind of attention is not installed.
    """
    if attention == "flash_attention_2" and not is_flash_attn_2_available():
        raise DestructError(
            "model.attention=flash_attention_2: the package flash-attn is not installed, or there is no GPU for it",
            "set model.attention: sdpa",
            Exit.ENVIRONMENT,
        )
    if shape.path is None:
        config = llama_config(shape, vocab_size)
    else:
        config = read_config(f"{key}.path", shape.path, shape.revision, with_head=key == "model.policy")
    config._attn_implementation = SDPA if attention == "sdpa" else attention
    return config


def build_policy(
    shape: PolicyShape,
    vocab_size: int,
    dtype: torch.dtype,
    seed: int,
    loss: str,
    attention: str = "sdpa",
    checkpointing: bool = False,
    chunk_rows: int | None = None,
    fsdp_ranks: int = 1,
) -> PolicyNetwork:
    """A policy, the same weights on every rank: pretrained, or from scratch by `seed`.

    `dtype` goes through the construction and never through `.to(dtype)`, which would round the rotary frequencies too
    (2e-3 nats in logprobs at 24 tokens in bfloat16).

    Args:
        checkpointing: keep activations at the borders of the layers alone.
        loss, chunk_rows: of the head.
        fsdp_ranks: as in `load_weights`.

    Raises:
        DestructError: a pretrained model cannot be read, or cannot be trained here.
    """
    config = network_config("model.policy", shape, vocab_size, attention)
    lm = model_to_train(AutoModelForCausalLM, "model.policy", shape, config, dtype, seed, checkpointing, fsdp_ranks)
    return PolicyNetwork(lm, loss, chunk_rows)


def model_to_train(
    auto: Any,
    key: str,
    shape: LlamaShape,
    config: PreTrainedConfig,
    dtype: torch.dtype,
    seed: int,
    checkpointing: bool,
    fsdp_ranks: int = 1,
) -> PreTrainedModel:
    """A model of `config`, pretrained or from scratch, in training mode (in which transformers heeds checkpointing).

    Args:
        auto: the class of transformers that knows which model it is, such as AutoModelForCausalLM.
        key: `model.policy` or `model.value`, for errors.
        fsdp_ranks: as in `load_weights`.

    Raises:
        DestructError: as `load_weights` does.
    """
    if shape.path is None:
        torch.manual_seed(seed)
        model = auto.from_config(config, dtype=dtype)
    else:
        model = load_weights(auto, f"{key}.path", shape.path, shape.revision, config, dtype, fsdp_ranks)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def build_copy(
    shape: PolicyShape,
    vocab_size: int,
    dtype: torch.dtype,
    loss: str,
    attention: str = "sdpa",
    chunk_rows: int | None = None,
) -> PolicyNetwork:
    """A network that the policy's weights fit, without gradients and with arbitrary weights: the frozen model, or the
    replica that generates."""
    config = network_config("model.policy", shape, vocab_size, attention)
    with no_init_weights():
        lm = AutoModelForCausalLM.from_config(config, dtype=dtype)
    lm.tie_weights()
    return PolicyNetwork(lm, loss, chunk_rows).requires_grad_(False).eval()


@torch.no_grad()
def take_buffers(network: nn.Module, like: nn.Module) -> None:
    """Give a network the buffers of another one of the same names, such as rotary frequencies, on the other's device.

    They come with no refresh and no `fill`, and a pretrained model may have some that are no function of its config.
    """
    for name, buffer in like.named_buffers():
        owner, _, leaf = name.rpartition(".")
        network.get_submodule(owner)._buffers[leaf] = buffer.clone()


@torch.no_grad()
def check_head(network: PolicyNetwork) -> None:
    """Compare the model's own logits with ours, on a few tokens.

    Raises:
        DestructError: they differ, so the model does more to them than its `LogitMap`.
    """
    weight = network.head.weight
    tokens = torch.arange(min(16, network.lm.config.vocab_size), device=weight.device)[None]
    positions = torch.arange(tokens.shape[1], device=weight.device)[None]
    own = network.lm(input_ids=tokens, position_ids=positions, use_cache=False).logits[0].float()
    ours = network(tokens, positions[0], None).float()
    gap, scale = (own - ours).abs().max().item(), ours.abs().max().item()
    if not gap <= LARGEST_HEAD_GAP[weight.dtype] * scale:
        raise DestructError(
            f"the logits of {type(network.lm).__name__} are not its hidden states times its head, scaled and capped by "
            f"its config: they differ by up to {gap:.3g} of {scale:.3g}",
            "name another model in model.policy.path: the fused loss would train on other logits than it speaks with",
        )
