"""configs/base.yaml at two ranks, on each backend: a small Llama, local Parquet files for the hub's, and smaller sizes.

Every other key is as shipped, so the run goes through transformers' loading in shards, `datasets`, bfloat16, activation
checkpointing, the offloaded frozen model and the prompts of configs/prompts.yaml.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from destruct.batch import TokenWindows
from destruct.config.settings import load
from destruct.engine.topology import Topology
from destruct.inputs import read_inputs
from destruct.tracking.console import Screen
from tests.corpora import SOURCES, write_corpora
from tests.distributed.launching import ROOT
from tests.forked import train_ranks
from tests.pretrained import write_llama

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

BASE = ROOT / "configs" / "base.yaml"

SIZES = {
    "run.updates_per_epoch": 2,
    "run.num_epochs": 1,
    "run.validation_windows": 8,
    "rollout.batch_size": 16,
    "rollout.prompt_tokens": 16,
    "rollout.response_tokens": 16,
    "warmup.value_updates": 1,
    "frozen.refresh_every": 1,
    "curriculum.difficulty_sample_size": 8,
    "prompts.response_tokens": 8,
}
"""The sizes that are made small."""


def paths(folder: Path) -> dict[str, str]:
    return {
        "model.policy.path": str(folder / "llama"),
        "model.value.path": str(folder / "llama"),
        "data.root": str(folder / "corpora"),
        "run.folder": str(folder / "runs"),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    write_llama(folder / "llama")
    write_corpora(folder / "corpora")
    return folder


@pytest.fixture(scope="module", params=["deepspeed", "fsdp"])
def finished(folder, request) -> Path:
    """The folder of the run after its two updates."""
    own = {"run.folder": str(folder / request.param), "engine.backend": request.param}
    overrides = [f"{key}={value}" for key, value in (SIZES | paths(folder) | own).items()]
    done = train_ranks(2, BASE, *overrides)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Traceback" not in done.stderr
    return folder / request.param / "base"


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_key_but_the_listed_ones_is_as_shipped(finished):
    shipped = load(BASE, [], 8).config.model_dump(mode="json")
    used = yaml.safe_load((finished / "resolved.yaml").read_text(encoding="utf-8"))

    def leaves(value, dotted=""):
        if not isinstance(value, dict) or not value:
            return {dotted: value}
        return {k: v for key, item in value.items() for k, v in leaves(item, f"{dotted}.{key}".strip(".")).items()}

    changed = {key for key, value in leaves(used).items() if leaves(shipped).get(key) != value}
    assert changed - {"engine.backend"} == {*SIZES, *paths(Path())}


def test_both_updates_start_at_a_ratio_of_one_with_pretrained_networks(finished):
    updates = [line for line in lines(finished / "metrics.jsonl") if "ppo/steps" in line]
    assert [line["ppo/first_ratio_error"] for line in updates] == [0.0, 0.0]
    assert [line["ppo/steps"] for line in updates] == [8.0, 8.0]
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["weights"].keys() == set(SOURCES) and summary["world_size"] == 2
    assert summary["skipped_steps"] == 0 and summary["rounds"] == 2


def documents_in(windows: TokenWindows) -> list[torch.Tensor]:
    """What the windows hold of each document, by itself."""
    rows = zip(windows.tokens, windows.positions, strict=True)
    return [part for row, places in rows for part in row.tensor_split((places[1:] == 0).nonzero().flatten() + 1)]


@torch.no_grad()
def mean_loss(lm: torch.nn.Module, documents: list[torch.Tensor]) -> float:
    """transformers' own cross-entropy of each document alone, nats per predicted token of all."""
    nats = [lm(part[None], labels=part[None]).loss * (len(part) - 1) for part in documents if len(part) > 1]
    return float(sum(nats)) / sum(len(part) - 1 for part in documents)


def test_the_first_validation_is_the_loss_that_transformers_gives_the_folder_on_the_same_windows(finished, folder):
    """Loaded in shards by two ranks there, whole and in float32 here: bfloat16 stands between the two."""
    overrides = [f"{key}={value}" for key, value in (SIZES | paths(folder)).items()]
    inputs = read_inputs(load(BASE, overrides, 2), Topology(0, 1, torch.device("cpu")), Screen(first_rank=False), None)
    lm = AutoModelForCausalLM.from_pretrained(folder / "llama", dtype=torch.float32).eval()
    before = json.loads((finished / "summary.json").read_text())["validation_loss_before"]
    assert [source.name for source in inputs.validation] == sorted(SOURCES)
    for source in inputs.validation:
        loss = mean_loss(lm, documents_in(source.windows))
        assert before[source.name] == pytest.approx(loss, rel=5e-3), source.name
    assert before["mean"] > math.log(lm.config.vocab_size) / 2


def test_documents_begin_with_the_models_bos_and_end_with_its_eos(finished, folder):
    overrides = [f"{key}={value}" for key, value in (SIZES | paths(folder)).items()]
    inputs = read_inputs(load(BASE, overrides, 2), Topology(0, 1, torch.device("cpu")), Screen(first_rank=False), None)
    theirs = AutoTokenizer.from_pretrained(folder / "llama")
    for windows in inputs.language:
        every = windows.select(np.arange(len(windows)))
        begins = every.positions == 0
        assert set(every.tokens[begins].tolist()) == {theirs.bos_token_id}, "where a window begins inside one, too"
        assert set(every.tokens[:, 1:-1][begins[:, 2:]].tolist()) == {theirs.eos_token_id}
    for pieces in inputs.train:
        some = pieces.read(np.arange(min(500, len(pieces))))
        first = some.tokens[np.arange(len(some.tokens)), 16 - some.prompt_lengths]
        assert set(first.tolist()) == {theirs.bos_token_id}, "a long document's later pieces, too"


def test_the_checkpoint_holds_the_frozen_model_under_the_names_of_the_pretrained_one(finished, folder):
    frozen = load_file(finished / "checkpoints/step-00000002/frozen/model.safetensors")
    lm = AutoModelForCausalLM.from_pretrained(folder / "llama", dtype=torch.bfloat16)
    theirs = dict(lm.named_parameters())
    assert {name.removeprefix("lm."): p.shape for name, p in frozen.items()} == {n: p.shape for n, p in theirs.items()}
    moved = [(frozen[f"lm.{name}"].float() - p.float()).abs().max().item() for name, p in theirs.items()]
    assert max(moved) < 1e-2, "at a learning rate of 1e-6 the policy, and its copy, are still close to the folder"


def test_every_prompt_is_continued_at_every_evaluation(finished):
    prompts = yaml.safe_load((ROOT / "configs" / "prompts.yaml").read_text(encoding="utf-8"))["prompts"]
    said = [line for line in lines(finished / "samples.jsonl") if "topic" in line]
    assert [line["prompt"] for line in said] == [prompt["text"] for prompt in prompts] * 2, "before and after"
    assert len({line["response"] for line in said}) > len(prompts) / 2
