"""The frozen model: the policy's shape, without a gradient, filled from the policy at every round."""

import torch

from destruct.config.model import LlamaShape
from destruct.models.policy import PolicyNetwork, build_policy


def build_frozen(shape: LlamaShape, vocab_size: int, dtype: torch.dtype, seed: int, loss: str) -> PolicyNetwork:
    """A network that any copy of the policy's weights fits: frozen model, or hook-free replica for generation."""
    return build_policy(shape, vocab_size, dtype, seed, loss).requires_grad_(False).eval()
