"""What every rank does for test_matrix.py: a run of two updates for each way of training; rank 0 writes the figures."""

import itertools
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

from destruct.build import build
from destruct.config.settings import load
from destruct.engine import topology as ranks
from destruct.engine.topology import Topology
from destruct.exits import Exit, leave
from destruct.loop import train
from destruct.summarizing import summarize
from destruct.tracking.console import Screen
from tests.tiny import ROOT, write_config

MODES = {"generate": "{repetition: 1.0, eos: 0.5}", "per_position": "{match: 1.0, frozen_likelihood: 0.1}"}
REFERENCES = ("frozen", "initial")
KL = {
    "k1": ["kl.in_reward=true", "kl.in_loss=none"],
    "k2": ["kl.in_reward=false", "kl.in_loss=k2"],
    "k3": ["kl.in_reward=false", "kl.in_loss=k3"],
    "exact": ["kl.in_reward=false", "kl.in_loss=exact"],
}
# A rolling reference is the policy itself in the first update of a round, where an exact KL would have nothing to do.
WAYS = [way for way in itertools.product(MODES, REFERENCES, KL) if way[1:] != ("frozen", "exact")]
STAGES = (0, 1, 2, 3)
SHORT = [
    "run.num_epochs=1",
    "run.updates_per_epoch=2",
    "run.checkpoint_every=0",
    "run.validation_windows=2",
    "run.samples_per_update=0",
    "warmup.lm_updates=1",
    "curriculum.difficulty_sample_size=2",
    "rollout.batch_size=8",
    "ppo.policy_lr=0.01",
    "ppo.epochs=1",
    "model.policy.num_hidden_layers=1",
    "kl.coef=0.5",
]


def one(folder: Path, stage: int, mode: str, reference: str, kl: str, topology: Topology) -> dict[str, Any]:
    """The figures of both updates and of the summary."""
    name = f"{mode}-{reference}-{kl}-zero{stage}"
    options = [f"run.name={name}", f"engine.deepspeed={folder / f'zero{stage}.json'}", *SHORT, *KL[kl]]
    options += [f"rollout.mode={mode}", f"reward.terms={MODES[mode]}", f"kl.reference={reference}"]
    settings = load(folder / "tiny.yaml", options, topology.world_size)
    run = build(settings, topology, Screen(first_rank=False), time.perf_counter())
    train(run)
    summary = summarize(run)
    networks = run.networks
    for engine in (networks.policy, networks.value, *networks.copies.values()):
        engine.engine.destroy()
    for handler in logging.getLogger().handlers:
        handler.close()
    if run.sinks is None:
        return {}
    run.sinks.close()
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    updates = [line for line in lines if "ppo/steps" in line]
    return {"updates": updates, "after": summary.validation_loss_after, "from_initial": summary.kl_from_initial}


def main() -> None:
    topology = ranks.start()
    folder = Path(sys.argv[1])
    if topology.is_first:
        write_config(folder)
        zero3 = json.loads((ROOT / "ds_configs" / "zero3.json").read_text()) | {"bf16": {"enabled": False}}
        for stage in STAGES:
            zero3["zero_optimization"]["stage"] = stage
            (folder / f"zero{stage}.json").write_text(json.dumps(zero3))
    topology.all_agree(True)  # the files are there
    results = {}
    for stage, way in itertools.product(STAGES, WAYS):
        if stage in (1, 2) and "exact" in way:  # what differs between the stages is the same for every KL
            continue
        results[f"{' '.join(way)} {stage}"] = one(folder, stage, *way, topology)
    if topology.is_first:
        (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    ranks.stop()


if __name__ == "__main__":
    main()
    leave(Exit.DONE)
