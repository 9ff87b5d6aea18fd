"""What every rank does for test_loading.py: loads models in shards; rank 0 writes what they hold."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from destruct.config.deepspeed import FrozenJSON, frozen_json, training_json
from destruct.config.model import LlamaShape, PolicyShape
from destruct.engine import topology as ranks
from destruct.engine.deepspeed import DeepSpeedEngine, DeepSpeedFrozen, loading_in_shards, made_in_shards
from destruct.engine.fsdp import FsdpEngine, FsdpFrozen
from destruct.engine.topology import Topology
from destruct.exits import Exit, leave
from destruct.models.policy import build_copy, build_policy, take_buffers
from destruct.models.reward_model import build_reward_model
from destruct.models.value import build_value
from tests.distributed.engine_setup import ADAM, training
from tests.tiny import ROOT

DTYPE = torch.bfloat16
FROZEN = FrozenJSON.model_validate_json((ROOT / "ds_configs" / "frozen_cpu_offload.json").read_text())


def unlike(engine: Any, whole: dict[str, torch.Tensor], prefix: str = "") -> list[str]:
    """Parameters that differ from a folder's by a bit or a shape; a name that is not there counts too."""
    got = {name.removeprefix(prefix): p.clone() for name, p in engine.tensors_in_full()}
    names = {name for name in got if not name.startswith("head.")} ^ set(whole)
    return [*names, *(n for n, p in whole.items() if n in got and not torch.equal(got[n].cpu(), p))]


def own_share(module: torch.nn.Module) -> float:
    """Elements of the module's tensors on this rank, as a share of all of them."""
    parts = [(p.to_local().numel(), p.numel()) for p in module.parameters() if isinstance(p, DTensor)]
    for p in module.parameters():
        if not isinstance(p, DTensor):
            parts.append((p.ds_tensor.numel(), p.ds_numel) if hasattr(p, "ds_tensor") else (p.numel(), p.numel()))
    return sum(own for own, _ in parts) / sum(whole for _, whole in parts)


def by_deepspeed(path: str, reward: str, topology: Topology) -> tuple[dict[str, Any], float]:
    """Engines by role, and the share of the policy that this rank held before there were any."""
    json_ = training_json(training(3, "bfloat16", 1), 1, topology.world_size, 1e-3, 1.0)
    frozen_config = frozen_json(FROZEN, training(3, "bfloat16", 1))
    with loading_in_shards(json_):
        policy = build_policy(PolicyShape(path=path), 0, DTYPE, 0, "chunked", checkpointing=True)
        value = build_value(LlamaShape(path=path), 0, DTYPE, 0)
        share = own_share(policy)
    with loading_in_shards(frozen_config):
        classifier = build_reward_model(reward, None, DTYPE)
    with made_in_shards(frozen_config):
        copy = build_copy(PolicyShape(path=path), 0, DTYPE, "chunked")
    engines = {
        "policy": DeepSpeedEngine(policy, json_, topology),
        "value": DeepSpeedEngine(value, json_, topology),
        "reward": DeepSpeedFrozen(classifier, frozen_config, topology),
        "frozen": DeepSpeedFrozen(copy, frozen_config, topology),
    }
    return engines, share


def by_fsdp(path: str, reward: str, topology: Topology) -> tuple[dict[str, Any], float]:
    """The same."""
    ranks = topology.world_size
    policy = build_policy(PolicyShape(path=path), 0, DTYPE, 0, "chunked", checkpointing=True, fsdp_ranks=ranks)
    share = own_share(policy)
    with torch.device("meta"):
        copy = build_copy(PolicyShape(path=path), 0, DTYPE, "chunked")
    take_buffers(copy, policy)
    engines = {
        "policy": FsdpEngine(policy, ADAM, 1, 1.0, topology),
        "value": FsdpEngine(build_value(LlamaShape(path=path), 0, DTYPE, 0, fsdp_ranks=ranks), ADAM, 1, 1.0, topology),
        "reward": FsdpFrozen(build_reward_model(reward, None, DTYPE, ranks), None, topology),
        "frozen": FsdpFrozen(copy, None, topology),
    }
    return engines, share


def cases(make: Any, folder: Path, topology: Topology) -> dict[str, Any]:
    path, reward = str(folder / "llama"), str(folder / "reward")
    engines, share = make(path, reward, topology)
    engines["frozen"].refresh(engines["policy"])
    lm = AutoModelForCausalLM.from_pretrained(path, dtype=DTYPE)
    theirs = dict(lm.named_parameters())
    scorer = AutoModelForSequenceClassification.from_pretrained(reward, dtype=DTYPE).eval()
    tokens, mask = torch.tensor([[5, 6, 7, 8], [9, 3, 0, 0]]), torch.tensor([[True] * 4, [True, True, False, False]])
    with torch.no_grad():
        scores = [scorer(tokens[row : row + 1, : int(mask[row].sum())]).logits.item() for row in range(2)]
    body = {name.removeprefix("model."): p for name, p in theirs.items() if name.startswith("model.")}
    tied = engines["policy"].module
    return {
        "policy": unlike(engines["policy"], theirs, "lm."),
        "frozen": unlike(engines["frozen"], theirs, "lm."),
        "value": unlike(engines["value"], body, "body."),
        "reward": unlike(engines["reward"], dict(scorer.named_parameters()), "classifier."),
        "scores": [engines["reward"](tokens, mask).tolist(), scores],
        "tied": tied.head.weight is tied.lm.get_input_embeddings().weight,
        "rotary": [
            m.body.rotary_emb.inv_freq.equal(lm.model.rotary_emb.inv_freq) for m in (tied, engines["frozen"].module)
        ],
        "share": share,
    }


def main() -> None:
    topology = ranks.start()
    folder = Path(sys.argv[1])
    results = {name: cases(make, folder, topology) for name, make in (("zero3", by_deepspeed), ("fsdp", by_fsdp))}
    if topology.is_first:
        Path(sys.argv[2]).write_text(json.dumps(results), encoding="utf-8")
    ranks.stop()


if __name__ == "__main__":
    main()
    leave(Exit.DONE)
