"""The policy network pi_theta: a causal language model whose head computes the loss itself."""

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from destruct.config.model import LlamaShape, PolicyShape
from destruct.ops.head import FusedHead
from destruct.ops.rows import LossOutput, PolicyLoss, ScoreOutput, ScoreRows


class PolicyNetwork(nn.Module):
    """A transformers language model under `lm`, its head replaced by a `FusedHead` on the same Parameter.

    Masks come from lengths: rows are left-aligned and causal, so padding on the right is never seen by a real token
    and the model gets positions but no attention mask.
    """

    def __init__(self, lm: LlamaForCausalLM, loss: str):
        super().__init__()
        lm.lm_head = FusedHead(lm.lm_head.weight, loss)
        self.lm = lm

    def forward(
        self, tokens: Tensor, rows: Tensor, request: PolicyLoss | ScoreRows | None
    ) -> LossOutput | ScoreOutput | Tensor:
        """Run the body on `tokens` and the head on the hidden states at `rows`.

        Args:
            tokens: (n, T) int64; n may be 0 (the head then gets no row, but every layer is still called).
            rows: (N,) int64 indices into the n*T positions; the state at position t predicts token t + 1.
            request: what the head computes: loss, scores, or logits for None.
        """
        hidden = body_states(self.lm.model, tokens)
        return self.lm.lm_head(hidden[rows], request)


def body_states(body: nn.Module, tokens: Tensor) -> Tensor:
    """Last hidden states (max(n, 1) * T, H) of a transformers decoder on left-aligned `tokens` (n, T).

    Without sequences one token stands in: the engines' hooks count on every layer being called on every rank.
    """
    if len(tokens) == 0:
        tokens = tokens.new_zeros(1, 1)
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    hidden = body(input_ids=tokens, position_ids=positions, use_cache=False).last_hidden_state
    return hidden.flatten(0, 1)


def next_token_rows(n: int, t: int, device: torch.device) -> Tensor:
    """Indices (n * (t - 1),) int64 of the states that predict every token but each row's first."""
    return (torch.arange(n, device=device)[:, None] * t + torch.arange(t - 1, device=device)).flatten()


def llama_config(shape: LlamaShape, vocab_size: int) -> LlamaConfig:
    """The transformers config of a shape; token ids beyond the vocabulary's are never special here."""
    return LlamaConfig(
        vocab_size=vocab_size,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        attn_implementation="sdpa",
        **_renamed(shape),
    )


def _renamed(shape: LlamaShape) -> dict[str, object]:
    values = shape.model_dump(exclude={"rope_theta"})
    values["num_key_value_heads"] = shape.num_key_value_heads or shape.num_attention_heads
    values["rope_parameters"] = {"rope_type": "default", "rope_theta": shape.rope_theta}
    return values


def build_policy(shape: PolicyShape, vocab_size: int, dtype: torch.dtype, seed: int, loss: str) -> PolicyNetwork:
    """A policy from scratch, the same weights on every rank.

    `dtype` goes through `from_config`-style construction and never through `.to(dtype)`, which would round the
    rotary frequencies too (2e-3 nats in logprobs at 24 tokens in bfloat16).
    """
    torch.manual_seed(seed)
    config = llama_config(shape, vocab_size)
    lm = LlamaForCausalLM._from_config(config, dtype=dtype)
    return PolicyNetwork(lm, loss)


def build_copy(shape: PolicyShape, vocab_size: int, dtype: torch.dtype, loss: str) -> PolicyNetwork:
    """A network without gradients that the policy's weights fit: the frozen model, or the replica that generates."""
    return build_policy(shape, vocab_size, dtype, 0, loss).requires_grad_(False).eval()
