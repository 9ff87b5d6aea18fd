"""Dense attention against torch's kernel and float64: outputs, gradients, masks, shared keys."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from destruct.models.attention import LONGEST, SDPA, dense_attention, sdpa
from destruct.models.policy import network_config
from tests.pretrained import SHAPE


def drawn(t: int, heads: int = 4, groups: int = 2, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    sizes = [(3, count, t, 16) for count in (heads, groups, groups)]
    return [torch.randn(size, generator=g, dtype=torch.float64).to(dtype).requires_grad_() for size in sizes]


def documents(t: int) -> Tensor:
    """(3, 1, t, t) bool: two documents in each row, of other lengths."""
    place = torch.arange(t)
    number = place >= torch.tensor([[t // 3], [t // 2], [t - 1]])
    seen = (number[:, :, None] == number[:, None]) & (place[:, None] >= place)
    return seen[:, None]


def torchs(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    said = F.scaled_dot_product_attention(query, key, value, mask, is_causal=mask is None, enable_gqa=True)
    return said.transpose(1, 2)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (4, 1)])
def test_it_is_torchs_attention_in_float64_forward_and_backward(masked, heads, groups):
    t = 21
    mask = documents(t) if masked else None
    mine, theirs = drawn(t, heads, groups), drawn(t, heads, groups)
    ours = dense_attention(*mine, mask, 16**-0.5)
    reference = torchs(*theirs, mask)
    assert torch.allclose(ours, reference, rtol=1e-12, atol=1e-12)
    weight = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (ours * weight).sum().backward()
    (reference * weight).sum().backward()
    for a, b in zip(mine, theirs, strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (4, 1)])
def test_one_token_behind_a_cache_is_the_last_of_the_whole_row(masked, heads, groups):
    """The keys and values are views of longer memory, as a cache has them."""
    query, key, value = (x.detach() for x in drawn(21, heads, groups))
    mask = documents(21) if masked else None
    whole = torchs(query, key, value, mask)
    room = [torch.full((3, groups, 30, 16), torch.nan, dtype=torch.float64) for _ in range(2)]
    for taken, filled in zip(room, (key, value), strict=True):
        taken[:, :, :21] = filled
    seen = None if mask is None else mask[:, :, -1:]
    last = dense_attention(query[:, :, -1:], *(taken[:, :, :21] for taken in room), seen, 16**-0.5)
    assert torch.allclose(last, whole[:, -1:], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-6), (torch.bfloat16, 8e-3)])
def test_its_rounding_is_that_of_the_dtype(dtype, bound):
    rounded = drawn(100, dtype=dtype)
    exact = torchs(*(x.detach().double() for x in rounded), None)
    got = dense_attention(*rounded, None, 16**-0.5).double()
    assert (got - exact).norm() / exact.norm() < bound


def test_a_column_that_sees_nothing_is_no_nan_and_has_no_gradient_that_is():
    mask = documents(8).clone()
    mask[0, :, 2] = False
    parts = drawn(8)
    said = dense_attention(*parts, mask, 0.25)
    said.sum().backward()
    assert said.isfinite().all() and all(x.grad.isfinite().all() for x in parts)


class Layer(torch.nn.Module):
    """What transformers' layers tell of themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.is_causal, self.num_key_value_groups = True, 2


@pytest.mark.parametrize(
    "case",
    [
        SimpleNamespace(name="short", t=12),
        SimpleNamespace(name="with a mask", t=12, mask=True),
        SimpleNamespace(name="too long", t=LONGEST + 1),
        SimpleNamespace(name="one new token", t=1, columns=9),
        SimpleNamespace(name="two new tokens", t=2, columns=9),
        SimpleNamespace(name="not causal", t=12, causal=False),
    ],
    ids=lambda case: case.name,
)
def test_whatever_it_is_given_it_says_what_transformers_says(case):
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    query, key, value = drawn(getattr(case, "columns", case.t), dtype=torch.float32)
    query = query[:, :, -case.t :]
    mask = documents(case.t) if hasattr(case, "mask") else None
    given = {"scaling": 0.3, "is_causal": getattr(case, "causal", None)}
    ours, _ = sdpa(Layer(), query, key, value, mask, **given)
    theirs, _ = sdpa_attention_forward(Layer(), query, key, value, mask, **given)
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_sdpa_of_the_config_is_this_and_the_others_are_transformers_own():
    from destruct.config.model import PolicyShape

    shape = PolicyShape(**{key: size for key, size in SHAPE.items() if key != "max_position_embeddings"})
    assert network_config("model.policy", shape, 300, "sdpa")._attn_implementation == SDPA
    assert network_config("model.policy", shape, 300, "eager")._attn_implementation == "eager"
