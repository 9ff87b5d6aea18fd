"""What the tests of the config share: a call that must be refused, and a run's files in a folder of their own."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from destruct.config.settings import Settings, load
from destruct.errors import DestructError

ROOT = Path(__file__).resolve().parents[2]

YAML = """\
model:
  policy: {max_position_embeddings: 64}
data:
  sources:
    prose: {embedded: prose}
rollout: {batch_size: 24, prompt_tokens: 16, response_tokens: 8}
ppo: {minibatches: 3}
engine: {deepspeed: train.json, frozen: frozen.json}
"""


@pytest.fixture
def refusal() -> Callable[..., tuple[str, str]]:
    """Calls what must raise DestructError: returns problem and remedy, one line each, exit code 2."""

    def call(function: Callable, *arguments: Any) -> tuple[str, str]:
        with pytest.raises(DestructError) as caught:
            function(*arguments)
        error = caught.value
        assert error.exit_code == 2
        assert len(error.problem.splitlines()) == len(error.remedy.splitlines()) == 1
        return error.problem, error.remedy

    return call


def changed(document: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy with some dotted keys set, or removed where the value is `...`."""
    document = copy.deepcopy(document)
    for dotted, value in changes.items():
        *parents, leaf = dotted.split(".")
        place = document
        for parent in parents:
            place = place.setdefault(parent, {})
        if value is ...:
            del place[leaf]
        else:
            place[leaf] = value
    return document


class RunFiles:
    """run.yaml, train.json and frozen.json in one folder; the JSON files start as the shipped ones."""

    def __init__(self, folder: Path):
        self.yaml, self.train, self.frozen = folder / "run.yaml", folder / "train.json", folder / "frozen.json"
        self.yaml.write_text(YAML)
        self.change_train({})
        self.change_frozen({})

    def change_train(self, changes: dict[str, Any]) -> None:
        self.train.write_text(json.dumps(changed(self._shipped("zero3.json"), changes)))

    def change_frozen(self, changes: dict[str, Any]) -> None:
        self.frozen.write_text(json.dumps(changed(self._shipped("frozen_cpu_offload.json"), changes)))

    def load(self, *overrides: str, world_size: int = 1) -> Settings:
        return load(self.yaml, list(overrides), world_size)

    @staticmethod
    def _shipped(name: str) -> dict[str, Any]:
        return json.loads((ROOT / "ds_configs" / name).read_text())


@pytest.fixture
def files(tmp_path: Path) -> RunFiles:
    return RunFiles(tmp_path)
