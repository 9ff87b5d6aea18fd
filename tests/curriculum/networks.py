"""A policy and a frozen model small enough for many rounds, windows for them, and their losses by transformers."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaForCausalLM

from destruct.batch import TokenWindows
from destruct.config.deepspeed import Optimizer
from destruct.config.model import PolicyShape
from destruct.engine.single import SingleEngine, SingleFrozen
from destruct.engine.topology import Topology
from destruct.models.policy import build_policy, llama_config
from destruct.warmup import cross_entropy_step

V, T = 24, 8
ALONE = Topology(0, 1, torch.device("cpu"))
SHAPE = PolicyShape(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)


def source(kind: int, count: int) -> Tensor:
    """Runs of consecutive tokens (learnt within steps) for the kind 0, or noise: (count, T) int64."""
    g = torch.Generator().manual_seed(kind)
    if kind == 0:
        return (torch.randint(0, V, (count, 1), generator=g) + torch.arange(T)) % V
    return torch.randint(0, V, (count, T), generator=g)


def whole(windows: list[Tensor]) -> list[TokenWindows]:
    """Windows of one document each."""
    return [TokenWindows.full(tokens) for tokens in windows]


def engines() -> tuple[SingleEngine, SingleFrozen]:
    policy = SingleEngine(build_policy(SHAPE, V, torch.float32, 1, "chunked"), Optimizer(), 1, 1.0)
    return policy, SingleFrozen(build_policy(SHAPE, V, torch.float32, 0, "chunked"))


def learn(policy: SingleEngine) -> None:
    """Steps on the first kind of source alone."""
    for _ in range(3):
        cross_entropy_step(policy, TokenWindows.full(source(0, 30)), 1e-2, ALONE)


def plain_nats(policy: SingleEngine, windows: Tensor) -> np.ndarray:
    """Nats of each predicted token of windows (n, T) of one document each: (n, T - 1) float64."""
    plain = LlamaForCausalLM._from_config(llama_config(SHAPE, V), dtype=torch.float32)
    plain.load_state_dict({n.removeprefix("lm."): p for n, p in policy.tensors_in_full()}, strict=False)
    with torch.no_grad():
        logits = plain.double()(windows).logits[:, :-1]
    return F.cross_entropy(logits.transpose(1, 2), windows[:, 1:], reduction="none").numpy()
