"""The value network V_phi: a Llama body of its own with a scalar head."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaModel

from destruct.config.model import LlamaShape
from destruct.models.policy import body_states, llama_config


class ScalarHead(nn.Module):
    """hidden (N, H) -> values (N,) float32; starts at 0 everywhere."""

    def __init__(self, hidden_size: int, dtype: torch.dtype):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, hidden_size, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(1, dtype=dtype))

    def forward(self, hidden: Tensor) -> Tensor:
        # float32: a value in bfloat16 is known to 0.4% only, as coarse as the advantages it serves.
        return F.linear(hidden.float(), self.weight.float(), self.bias.float()).squeeze(-1)


class ValueNetwork(nn.Module):
    """Estimates the return of each state."""

    def __init__(self, body: LlamaModel, dtype: torch.dtype):
        super().__init__()
        self.body = body
        self.head = ScalarHead(body.config.hidden_size, dtype)

    def forward(self, tokens: Tensor, rows: Tensor) -> Tensor:
        """V at the positions `rows` (N,) of `tokens` (n, T): (N,) float32, reward units."""
        return self.head(body_states(self.body, tokens)[rows])


def build_value(shape: LlamaShape, vocab_size: int, dtype: torch.dtype, seed: int) -> ValueNetwork:
    """A value network from scratch, the same weights on every rank."""
    torch.manual_seed(seed)
    config = llama_config(shape, vocab_size)
    body = LlamaModel._from_config(config, dtype=dtype)
    return ValueNetwork(body, dtype)
