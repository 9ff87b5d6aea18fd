"""The value network V_phi: the body of a language model with a scalar head, apart from the policy."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from destruct.config.model import LlamaShape
from destruct.models.documents import body_states
from destruct.models.last_layer import let_read_rows_alone
from destruct.models.policy import model_to_train, network_config


class ScalarHead(nn.Module):
    """hidden (N, H) -> values (N,) float32; starts at 0 everywhere."""

    def __init__(self, hidden_size: int, dtype: torch.dtype):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, hidden_size, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(1, dtype=dtype))

    def forward(self, hidden: Tensor) -> Tensor:
        # float32: a value in bfloat16 is known to 0.4% only, as coarse as the advantages it serves.
        # A copy and no view: FSDP's hooks on the output would miss what is done to a view in place.
        return F.linear(hidden.float(), self.weight.float(), self.bias.float()).squeeze(-1).clone()


class ValueNetwork(nn.Module):
    """Estimates the return of each state."""

    def __init__(self, body: PreTrainedModel, dtype: torch.dtype):
        super().__init__()
        self.body = body
        let_read_rows_alone(body)
        self.head = ScalarHead(body.config.hidden_size, dtype)

    def forward(self, tokens: Tensor, rows: Tensor, positions: Tensor | None = None) -> Tensor:
        """V at the places `rows` (N,) of `tokens` (n, T), whose `positions` are those of `body_states`: (N,) float32,
        reward units."""
        return self.head(body_states(self.body, tokens, positions, rows))


def build_value(
    shape: LlamaShape,
    vocab_size: int,
    dtype: torch.dtype,
    seed: int,
    attention: str = "sdpa",
    checkpointing: bool = False,
    fsdp_ranks: int = 1,
) -> ValueNetwork:
    """A value network, the same weights on every rank: a pretrained body, or one from scratch by `seed`.

    Args:
        fsdp_ranks: as in `load_weights`.

    Raises:
        DestructError: a pretrained model cannot be read.
    """
    config = network_config("model.value", shape, vocab_size, attention)
    body = model_to_train(AutoModel, "model.value", shape, config, dtype, seed, checkpointing, fsdp_ranks)
    return ValueNetwork(body, dtype)
