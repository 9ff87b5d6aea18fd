"""Shapes of the networks that transformers would refuse only when it builds them."""

import pytest
from pydantic import ValidationError

from destruct.config.model import LlamaShape


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"hidden_size": 100, "num_attention_heads": 8}, "hidden_size=100 is not an even multiple of num_attention_"),
        # 12 = 3 heads of 4 would do; 4 heads of 3 have no half for the rotary embedding.
        (
            {"hidden_size": 12, "num_attention_heads": 4},
            "hidden_size=12 is not an even multiple of num_attention_heads",
        ),
        (
            {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 4},
            "num_attention_heads=6 is no multiple of num_key_value_heads=4",
        ),
        (
            {"hidden_size": 96, "num_attention_heads": 2, "num_key_value_heads": 4},
            "num_attention_heads=2 is no multiple of num_key_value_heads=4",
        ),
    ],
)
def test_heads_that_do_not_divide_are_refused(shape, message):
    with pytest.raises(ValidationError, match=message):
        LlamaShape.model_validate(shape)


@pytest.mark.slow  # imports transformers
@pytest.mark.parametrize("heads", [(12, 3, None), (96, 6, 3), (96, 6, 1), (8, 4, 4)])
def test_an_accepted_shape_runs_in_transformers(heads):
    """One forward pass of a model of this shape: its attention splits heads as the config promises."""
    import torch
    from transformers import LlamaModel

    from destruct.models.policy import llama_config

    hidden, query, key_value = heads
    shape = LlamaShape(
        hidden_size=hidden, num_attention_heads=query, num_key_value_heads=key_value, num_hidden_layers=1
    )
    model = LlamaModel(llama_config(shape, 16))
    assert model(torch.tensor([[1, 2, 3]])).last_hidden_state.isfinite().all()
    assert model.layers[0].self_attn.k_proj.out_features == hidden // query * (key_value or query)
