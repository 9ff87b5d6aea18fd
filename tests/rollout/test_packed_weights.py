"""Products by packed weights against torch's own: the same bits, and nothing is left behind."""

import pytest
import torch
from torch import nn

from destruct.config.model import PolicyShape
from destruct.models.policy import build_policy
from destruct.rollout.packed_weights import packed

SHAPE = PolicyShape(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2)
NATIVE = torch.ops.mkldnn._is_mkldnn_bf16_supported()


@torch.no_grad()
def test_logits_are_the_same_bits_whatever_the_number_of_rows():
    network, tokens = build_policy(SHAPE, 50, torch.bfloat16, 0, "chunked"), torch.arange(40).view(8, 5)
    rows = torch.arange(40)
    plain = {n: network(tokens[:n], rows[: 5 * n], None) for n in (1, 3, 8)}
    with packed(network, 8):
        assert all(torch.equal(network(tokens[:n], rows[: 5 * n], None), want) for n, want in plain.items())
        assert ("forward" in vars(network.head)) is NATIVE, "or the test compares torch with itself"
    assert not any("forward" in vars(part) for part in network.modules())


@torch.no_grad()
def test_a_bias_is_added_and_what_only_inherits_from_a_linear_layer_is_left_alone():
    class Twice(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    network = nn.Sequential(nn.Linear(16, 24), Twice(24, 8)).bfloat16()
    x = torch.randn(4, 16).bfloat16()
    want = network(x)
    with packed(network, 4):
        assert torch.equal(network(x), want)


@pytest.mark.parametrize("weight", [torch.zeros(4, 4), torch.zeros(0, dtype=torch.bfloat16)], ids=["float32", "lent"])
def test_other_weights_are_multiplied_as_before(weight):
    network = nn.Sequential(nn.Linear(4, 4, bias=False))
    network[0].weight = nn.Parameter(weight, requires_grad=False)
    with packed(network, 4):
        assert "forward" not in vars(network[0])


def test_a_failure_leaves_nothing_behind():
    network = nn.Sequential(nn.Linear(4, 4)).bfloat16()
    with pytest.raises(KeyError), packed(network, 4):
        raise KeyError
    assert "forward" not in vars(network[0])
