"""The policy and the value network: taken from pretrained weights, or Llamas of a given shape made from scratch."""

from typing import Literal, Self

from pydantic import Field, model_validator

from destruct.config.base import Section


class LlamaShape(Section):
    """Pretrained weights at `path`, or a Llama from scratch; names of its shape as in `transformers.LlamaConfig`."""

    path: str | None = Field(None, min_length=1)
    """A causal language model as transformers saves it, e.g. `meta-llama/Llama-3.2-1B` of the Hugging Face hub or a
    local folder; its shape is then its own, and no key of the shape can stand beside it."""
    revision: str | None = Field(None, min_length=1)
    """Branch, tag or commit of a hub `path`."""
    hidden_size: int = Field(128, ge=8)
    """Width H of the hidden states."""
    intermediate_size: int = Field(384, ge=8)
    """Width of the gated feed-forward layer."""
    num_hidden_layers: int = Field(4, ge=1)
    """Decoder layers."""
    num_attention_heads: int = Field(4, ge=1)
    """Query heads; must divide hidden_size."""
    num_key_value_heads: int | None = Field(None, ge=1)
    """Key/value heads; as many as query heads unless given."""
    max_position_embeddings: int = Field(512, ge=2)
    """Context of the model in tokens; prompt plus response must fit."""
    rope_theta: float = Field(10_000.0, gt=0)
    """Base of the rotary position embedding."""
    initializer_range: float = Field(0.02, gt=0)
    """Standard deviation of the initial weights."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        shape = self.changed(*sorted(type(self).model_fields.keys() - {"path", "revision"}))
        if self.path is not None and shape:
            raise ValueError(f"path={self.path} has a shape of its own, and {shape[0]} is given; leave one of them out")
        if self.path is None and self.revision is not None:
            raise ValueError("revision is that of a path, and none is given; give path, or leave revision out")
        return self

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size={self.hidden_size} is not an even multiple of "
                f"num_attention_heads={self.num_attention_heads}; make it a multiple of twice num_attention_heads"
            )
        if self.num_attention_heads % (self.num_key_value_heads or self.num_attention_heads):
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} is no multiple of "
                f"num_key_value_heads={self.num_key_value_heads}; choose a divisor of num_attention_heads"
            )
        return self


class PolicyShape(LlamaShape):
    """A Llama with a language-model head."""

    tie_word_embeddings: bool = True
    """The output head shares the input embedding's weight."""


class ModelConfig(Section):
    """The two networks that are trained.  The frozen model has the policy's shape."""

    policy: PolicyShape = PolicyShape()
    """The language model pi_theta."""
    value: LlamaShape = LlamaShape()
    """The value network V_phi: the body of a language model with a scalar head; it may be smaller than the policy."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """How attention is computed: `sdpa` by torch, on a CPU by dense products where rows have at most 512 tokens;
    `eager` by transformers; `flash_attention_2` needs the package flash-attn, a GPU and bfloat16."""
    activation_checkpointing: bool = False
    """Keep the activations at the borders of the layers alone and compute the others again in the backward pass: about
    a third more time, a fraction of the memory."""
