"""What tests of an exported folder share: its validation loss by plain transformers, and by our own network."""

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from destruct.engine.single import SingleFrozen
from destruct.engine.topology import Topology
from destruct.evaluation import ValidationSet, validate
from destruct.models.attention import SDPA
from destruct.models.policy import PolicyNetwork


@torch.no_grad()
def plain_loss(folder: Path, sets: list[ValidationSet]) -> dict[str, float]:
    """Nats per token of each source, of whatever `from_pretrained` makes of a folder."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    losses = {}
    for source in sets:
        windows = source.windows
        logits = model(input_ids=windows.tokens, position_ids=windows.positions, use_cache=False).logits
        losses[source.name] = F.cross_entropy(logits.flatten(0, 1)[windows.rows].double(), windows.targets).item()
    return losses


def own_loss(folder: Path, sets: list[ValidationSet]) -> dict[str, float]:
    """The same and their mean, by the run's own attention and head."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=SDPA)
    alone = Topology(0, 1, torch.device("cpu"))
    return validate(SingleFrozen(PolicyNetwork(model, "chunked")), sets, alone).as_summary()


def named(folder: Path) -> dict[str, torch.Tensor]:
    """Every parameter of a folder, by its name in the policy's network."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    return {f"lm.{name}": p.detach() for name, p in model.named_parameters()}


def complaint(stderr: str) -> str:
    """What is said there besides how far slow work has come."""
    return re.sub(r"^(verify|load|export) +\d.*\n", "", stderr, flags=re.M)
