"""The last decoder layer's feed-forward part on the rows alone whose states are asked for.

Nothing reads the others: of prompt and response that is every row of the prompt, so that of L layers a share of
3/4 P / (P + R) / L of the products is left out (the feed-forward part has three quarters of a layer's).
"""

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer


class RowsAlone:
    """Put before a layer's class: its forward takes `rows` besides."""

    def forward(self: Any, hidden_states: Tensor, *others: Any, rows: Tensor | None = None, **named: Any) -> Tensor:
        """As the layer has it; where rows (N,) int64 are given, of n * T, the states (N, H) of these alone."""
        if rows is None:
            return super().forward(hidden_states, *others, **named)  # type: ignore[misc]
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **named)
        states = (hidden_states + attended).flatten(0, 1)[rows]
        return states + self.mlp(self.post_attention_layernorm(states))


ALIKE = (LlamaDecoderLayer, MistralDecoderLayer, Qwen2DecoderLayer, Qwen3DecoderLayer)
"""Layers of transformers whose forward is h = x + attention(norm(x)); h + mlp(norm(h)), and nothing else."""
WITH_ROWS: dict[type, Any] = {kind: type(kind.__name__, (RowsAlone, kind), {}) for kind in ALIKE}
"""Each under the same name, by which transformers finds what is not to be split."""


def let_read_rows_alone(body: PreTrainedModel) -> None:
    """Let the last layer of a decoder take `rows`, if it is of a kind that is known."""
    last: Any = body.layers[-1] if hasattr(body, "layers") else None
    if type(last) in WITH_ROWS:
        last.__class__ = WITH_ROWS[type(last)]


def reads_rows_alone(body: PreTrainedModel) -> bool:
    """Whether the body may be given `rows`; its last hidden states are then (N, H)."""
    return hasattr(body, "layers") and isinstance(body.layers[-1], RowsAlone)
