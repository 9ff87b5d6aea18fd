"""Reads models in a process of its own, whose environment says where the hub is.

JSON on standard input, name of a case -> [what, path, revision, token]; JSON on standard output, name -> what came
of it.
With the argument `impatient`, the client does not wait between its tries.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from destruct.config.model import LlamaShape, PolicyShape
from destruct.data.tokenizing import Tokenizer
from destruct.errors import DestructError
from destruct.models.policy import build_policy
from destruct.models.pretrained import read_config
from destruct.models.reward_model import build_reward_model
from destruct.models.value import build_value
from tests.hub import impatient

TEXT = "The year 1984, as written."


def digests(state: dict[str, Tensor]) -> dict[str, str]:
    """Name -> SHA-256 of the bits of a tensor."""
    return {name: hashlib.sha256(t.contiguous().view(torch.uint8).numpy()).hexdigest() for name, t in state.items()}


def config(path: str, revision: str | None) -> Any:
    return read_config("model.policy.path", path, revision).vocab_size


def policy(path: str, revision: str | None) -> Any:
    network = build_policy(PolicyShape(path=path, revision=revision), 0, torch.bfloat16, 0, "chunked")
    return digests(dict(network.lm.named_parameters()))


def value(path: str, revision: str | None) -> Any:
    return digests(build_value(LlamaShape(path=path, revision=revision), 0, torch.bfloat16, 0).body.state_dict())


def reward(path: str, revision: str | None) -> Any:
    return digests(build_reward_model(path, revision, torch.float32).classifier.state_dict())


def tokenizer(path: str, revision: str | None) -> Any:
    return Tokenizer.pretrained("data.tokenizer.path", path, revision).encode([TEXT])[0].tolist()


READERS: dict[str, Callable[[str, str | None], Any]] = {
    "config": config,
    "policy": policy,
    "value": value,
    "reward": reward,
    "tokenizer": tokenizer,
}


def outcome(what: str, path: str, revision: str | None = None, token: str = "") -> Any:
    """What was read, or what the error says."""
    os.environ["HF_TOKEN"] = token  # read anew for every request; empty is none
    try:
        return READERS[what](path, revision)
    except DestructError as error:
        return {"problem": error.problem, "remedy": error.remedy, "exit_code": error.exit_code}


if __name__ == "__main__":
    if "impatient" in sys.argv:
        impatient()
    cases = json.load(sys.stdin)
    json.dump({name: outcome(*case) for name, case in cases.items()}, sys.stdout)
