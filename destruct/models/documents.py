"""Several documents in one row, none of which sees another: told from their positions, without an attention mask."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from destruct.errors import DestructError
from destruct.models.last_layer import reads_rows_alone

SEES_ONE_ROW = {"flash_attention_2"}
"""Kinds of attention for which transformers looks for documents in a batch of one row alone."""

LARGEST_TRACE = {torch.bfloat16: 1e-2, torch.float32: 1e-4}
"""Of another document in hidden states, relative: 0 in most models; up to 6e-7 in float32 where tokens share experts;
0.1 to 1 in models that see it, and still 2e-3 in an untrained one."""


def body_states(
    body: PreTrainedModel, tokens: Tensor, positions: Tensor | None = None, rows: Tensor | None = None
) -> Tensor:
    """Last hidden states of a transformers decoder: (N, H) at `rows`, or all (max(n, 1) * T, H).

    Without sequences one token stands in: the engines' hooks count on every layer being called on every rank.

    Args:
        tokens: (n, T) int64.
        positions: (n, T) int64, the place of each token in its document: 0 begins one, which sees nothing of those
            before it.  0 to T - 1 for None.
        rows: (N,) int64 indices into the n * T places.
    """
    if len(tokens) == 0:
        tokens, positions = tokens.new_zeros(1, 1), None
    if positions is None:
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    elif body.config._attn_implementation in SEES_ONE_ROW:
        tokens, positions = tokens.reshape(1, -1), positions.reshape(1, -1)
    # With a cache, or a mask, transformers would not look for documents.
    given = {"input_ids": tokens, "position_ids": positions, "use_cache": False}
    if rows is not None and reads_rows_alone(body):
        return body(**given, rows=rows).last_hidden_state
    hidden = body(**given).last_hidden_state.flatten(0, 1)
    return hidden if rows is None else hidden[rows]


@torch.no_grad()
def check_documents(
    key: str, network: Any, forward: Callable[[Tensor, Tensor, Tensor], Any], device: torch.device
) -> None:
    """Read a document behind two others in turn, through an engine; all ranks call it.

    The masks of most models in transformers heed positions, those of some do not (GPT-OSS, OPT, Bloom, Falcon), and
    what is recurrent knows no mask.

    Args:
        key: `model.policy` or `model.value`, for the error.
        network: a `PolicyNetwork` or a `ValueNetwork`, in the engine.
        forward: the engine's, of tokens, rows and positions.

    Raises:
        DestructError: the hidden states of the document depend on what stands before it.
    """
    positions = torch.tensor([[*range(16), *range(8)]], device=device)
    rows = torch.arange(16, 24, device=device)
    tokens = torch.arange(24, device=device)[None]
    states: list[Tensor] = []
    hook = network.head.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0].float()))
    for before in (tokens[:, :16], tokens[:, :16].flip(1)):
        forward(torch.cat([before, tokens[:, 16:]], 1), rows, positions)
    hook.remove()
    one, two = states
    trace = ((one - two).norm() / one.norm()).item()
    if not trace <= LARGEST_TRACE[network.head.weight.dtype]:
        raise DestructError(
            f"{key}.path: {type(network.body).__name__} lets a document see the one before it in a row: its hidden "
            f"states differ by {trace:.2g} of their size with another one there",
            "name another model, whose attention in transformers heeds position_ids",
        )
