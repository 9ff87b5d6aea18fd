"""A run small enough for tests: config values by dotted key, for files and command lines, and the run itself."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import yaml

from destruct.build import build
from destruct.config.settings import load
from destruct.engine.topology import Topology
from destruct.run import Run
from destruct.tracking.console import Screen

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


@contextmanager
def tiny_run(folder: Path, *overrides: str, aloud: bool = False) -> Iterator[Run]:
    """That run as one process on the `single` backend; its files are closed when the block ends.

    Args:
        aloud: its screen writes to stdout.
    """
    settings = load(write_config(folder), ["engine.backend=single", *overrides], 1)
    with logging_as_before():
        run = build(settings, Topology(0, 1, torch.device("cpu")), Screen(first_rank=aloud), time.perf_counter())
    try:
        yield run
    finally:
        run.close()


@contextmanager
def logging_as_before() -> Iterator[None]:
    """A run takes all logging of its process to a file; here it is given back."""
    loggers = [logging.getLogger(name) for name in (None, "DeepSpeed", "transformers", "torch", "datasets")]
    before = [(logger.handlers, logger.propagate) for logger in loggers]
    try:
        yield
    finally:
        logging.captureWarnings(False)
        logging.raiseExceptions, threading.excepthook = True, threading.__excepthook__
        for handler in logging.getLogger().handlers:
            handler.close()
        for logger, (handlers, propagate) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate


def one(prompts: list[str], responses: list[str], continuations: list[str]) -> list[float]:
    """The reward term `tests.tiny:one`: 1 for every response."""
    return [1.0] * len(responses)
