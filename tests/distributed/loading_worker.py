"""What every rank does for test_loading.py: loads models into ZeRO-3 shards; rank 0 writes what they hold."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from destruct.config.deepspeed import FrozenJSON, frozen_json, training_json
from destruct.config.model import LlamaShape, PolicyShape
from destruct.engine import topology as ranks
from destruct.engine.deepspeed import DeepSpeedEngine, DeepSpeedFrozen, loading_in_shards, made_in_shards
from destruct.engine.topology import Topology
from destruct.exits import Exit, leave
from destruct.models.policy import build_copy, build_policy
from destruct.models.reward_model import build_reward_model
from destruct.models.value import build_value
from tests.distributed.engine_worker import training
from tests.tiny import ROOT

FROZEN = FrozenJSON.model_validate_json((ROOT / "ds_configs" / "frozen_cpu_offload.json").read_text())


def unlike(engine: Any, whole: dict[str, torch.Tensor], prefix: str = "") -> list[str]:
    """Parameters that differ from a folder's by a bit or a shape; a name that is not there counts too."""
    got = {name.removeprefix(prefix): p.clone() for name, p in engine.tensors_in_full()}
    names = {name for name in got if not name.startswith("head.")} ^ set(whole)
    return [*names, *(n for n, p in whole.items() if n in got and not torch.equal(got[n].cpu(), p))]


def largest_share(module: torch.nn.Module) -> float:
    """Elements of the module's tensors on this rank, as a share of all of them."""
    own = sum(p.ds_tensor.numel() for p in module.parameters())
    return own / sum(p.ds_numel for p in module.parameters())


def cases(folder: Path, topology: Topology) -> dict[str, Any]:
    path, reward, dtype = str(folder / "llama"), str(folder / "reward"), torch.bfloat16
    json_ = training_json(training(3, "bfloat16", 1), 1, topology.world_size, 1e-3, 1.0)
    frozen_config = frozen_json(FROZEN, training(3, "bfloat16", 1))
    with loading_in_shards(json_):
        policy = build_policy(PolicyShape(path=path), 0, dtype, 0, "chunked", checkpointing=True)
        value = build_value(LlamaShape(path=path), 0, dtype, 0)
        share = largest_share(policy)
    with loading_in_shards(frozen_config):
        classifier = build_reward_model(reward, None, dtype)
    with made_in_shards(frozen_config):
        copy = build_copy(PolicyShape(path=path), 0, dtype, "chunked")
    engines = {
        "policy": DeepSpeedEngine(policy, json_, topology),
        "value": DeepSpeedEngine(value, json_, topology),
        "reward": DeepSpeedFrozen(classifier, frozen_config, topology),
        "frozen": DeepSpeedFrozen(copy, frozen_config, topology),
    }
    engines["frozen"].refresh(engines["policy"])
    lm = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    theirs = dict(lm.named_parameters())
    scorer = AutoModelForSequenceClassification.from_pretrained(reward, dtype=dtype).eval()
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
        "rotary": [m.body.rotary_emb.inv_freq.equal(lm.model.rotary_emb.inv_freq) for m in (tied, copy)],
        "share": share,
    }


def main() -> None:
    topology = ranks.start()
    results = cases(Path(sys.argv[1]), topology)
    if topology.is_first:
        Path(sys.argv[2]).write_text(json.dumps(results), encoding="utf-8")
    ranks.stop()


if __name__ == "__main__":
    main()
    leave(Exit.DONE)
