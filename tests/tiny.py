"""A run small enough for tests: config values by dotted key, for files and command lines."""

from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]

CONFIG = {
    "run": {"seed": 3, "num_epochs": 2, "updates_per_epoch": 3, "validation_windows": 4, "checkpoint_every": 3},
    "engine": {
        "deepspeed": str(ROOT / "ds_configs/zero3.json"),
        "frozen": str(ROOT / "ds_configs/frozen_cpu_offload.json"),
    },
    "model": {
        "policy": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
        "value": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1},
    },
    "data": {
        "tokenizer": {"vocab_size": 300},
        "embedded_bytes": 20_000,
        "sources": {"arithmetic": {"embedded": "arithmetic"}, "noise": {"embedded": "noise", "learnable": False}},
    },
    "rollout": {"batch_size": 16, "prompt_tokens": 8, "response_tokens": 8},
    "kl": {"bound": 1.0},
    "ppo": {"epochs": 2, "minibatches": 2, "policy_lr": 1e-3, "value_lr": 1e-3},
    "warmup": {"lm_updates": 4, "lm_lr": 3e-3, "value_updates": 1},
    "frozen": {"refresh_every": 1},
    "curriculum": {"difficulty_sample_size": 8},
}


def write_config(folder: Path, name: str = "tiny") -> Path:
    """Write CONFIG as a YAML file whose runs go below `folder`."""
    config = CONFIG | {"run": CONFIG["run"] | {"name": name, "folder": str(folder)}}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path
