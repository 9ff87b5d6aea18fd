"""The parity gate of bench/ppo_iteration.py: one rollout of TRL through both sides, in float32, figure by figure.

TRL makes one real iteration while what it computes is recorded; our side scores and differentiates the same rollout.
Documented differences: TRL weighs the value loss by 0.1 in one sum, where ours has an engine for each network.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.ppo_case import Work, write, write_config

ROOT = Path(__file__).resolve().parents[1]
LARGEST_GAP = 1e-5
"""Relative L2 of each figure."""


def check(work: Work, threads: int) -> dict[str, float]:
    """Relative gaps by figure.  Raises SystemExit where one is too large.

    Args:
        work: whose sizes are taken, in float32 and without an end of responses.
    """
    work = replace(work, dtype="float32", mean_length=None)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write(work, folder)
        write_config(work, folder, "single", 1)
        for side in ("peer", "ours"):
            environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
            command = [sys.executable, "-m", "bench.ppo_parity", side, str(folder), json.dumps(asdict(work))]
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(done.stderr[-3000:])
        gaps = json.loads(done.stdout.splitlines()[-1])
    wrong = {name: found for name, found in gaps.items() if not found <= LARGEST_GAP}
    if wrong:
        raise SystemExit(f"the two sides do not do the same work: {wrong}")
    return gaps


def record_peer(work: Work, folder: Path) -> None:
    """One iteration of TRL: rollout, logprobs, values, scores, advantages, losses and gradients of its first epoch."""
    from trl.experimental.ppo import ppo_trainer

    from bench.ppo_trl import trainer_of

    calls: dict[str, list[Any]] = {}

    def recording(name: str) -> None:
        original: Callable[..., Any] = getattr(ppo_trainer, name)

        def recorded(*args: Any, **kwargs: Any) -> Any:
            output = original(*args, **kwargs)
            calls.setdefault(name, []).append(output)
            return output

        setattr(ppo_trainer, name, recorded)

    for name in ("batch_generation", "selective_log_softmax", "get_reward", "masked_whiten"):
        recording(name)
    trainer = trainer_of(work, folder, 1, [])
    backward, losses, gradients = trainer.accelerator.backward, [], {}

    def differentiating(loss: Tensor) -> None:
        losses.append(loss.detach())
        backward(loss)
        if len(losses) == work.accumulation:
            gradients.update(
                {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
            )

    trainer.accelerator.backward = differentiating
    trainer.train()
    logprobs, (value, score) = calls["selective_log_softmax"], calls["get_reward"]
    found = {
        "rollout": calls["batch_generation"][0][0],
        "old_logprobs": logprobs[0],
        "reference_logprobs": logprobs[1],
        "old_values": value[0][:, work.prompt - 1 : -1].squeeze(-1),
        "scores": score[1],
        "advantages": calls["masked_whiten"][0],
        "loss": torch.stack(losses[: work.accumulation]).mean(),
    }
    torch.save(found | {"gradients": gradients}, folder / "peer.pt")


def compare_ours(work: Work, folder: Path) -> dict[str, float]:
    """The same rollout through our loop, as far as the first step."""
    from bench.ppo_ours import made
    from destruct.batch import PromptBatch, RolloutBatch
    from destruct.minibatch import micro_batches
    from destruct.ppo.update import accumulate
    from destruct.rollout.score import with_advantages
    from destruct.steps import loss_coefficients, pack_and_score

    peer = torch.load(folder / "peer.pt", weights_only=True)
    run = made(folder / "single.yaml", "never")
    run.frozen.refresh(run.policy)
    give_head(run.value.module, peer_head(folder))
    rows = torch.arange(work.batch)
    windows = peer["rollout"]
    prompts = PromptBatch.full(0, work.prompt, windows, torch.zeros_like(rows), rows)
    said = windows[:, work.prompt :]
    never = torch.zeros(work.batch, dtype=torch.bool)
    rollouts = RolloutBatch(prompts, said, torch.ones_like(said, dtype=torch.bool), never, teacher_forced=False)
    batches = with_advantages(pack_and_score(run, rollouts), run.config.gamma, run.config.ppo.lam, run.topology)
    settings, device = run.update_settings, run.topology.device
    tally = accumulate(run.policy, run.value, batches[0], loss_coefficients(run), settings, device, None)
    sums, _ = tally.over_ranks(run.topology)
    ours = {
        name: torch.empty_like(peer[name])
        for name in ("old_logprobs", "reference_logprobs", "old_values", "advantages")
    }
    ours["scores"] = torch.empty_like(peer["scores"])
    for train in micro_batches(batches):
        where = train.scored.rollouts.prompts.sample
        for name in ("old_logprobs", "reference_logprobs", "old_values"):
            ours[name][where] = getattr(train.scored, name)
        ours["advantages"][where] = train.advantages
        ours["scores"][where] = train.scored.rewarded.score
    gaps = {name: gap(mine, peer[name]) for name, mine in ours.items()}
    loss = sums["policy_loss"] / said.numel() + VALUE_WEIGHT * sums["value_loss"]
    gaps["loss"] = abs(loss / peer["loss"].item() - 1)
    return gaps | gradient_gaps(run, peer["gradients"])


VALUE_WEIGHT = 0.1
"""vf_coef, TRL's default."""


def gradient_gaps(run: Any, theirs: dict[str, Tensor]) -> dict[str, float]:
    """The largest relative gap of a parameter's gradient, of each network."""
    found = {}
    for role, engine, prefix, weight in (
        ("policy", run.policy, "policy.", 1.0),
        ("value", run.value, "value_model.", VALUE_WEIGHT),
    ):
        gaps = []
        for name, p in engine.module.named_parameters():
            other = theirs.get(prefix + RENAMED[role](name))
            if other is not None:
                gaps.append(gap(weight * p.grad, other))
        assert len(gaps) >= len(list(engine.module.parameters())) - 1, "all but the bias of the value head"
        found[f"gradient {role}"] = max(gaps)
    return found


RENAMED: dict[str, Callable[[str], str]] = {
    "policy": lambda name: name.removeprefix("lm."),
    "value": lambda name: name.replace("body.", "model.").replace("head.", "score."),
}
"""Our name of a parameter -> TRL's."""


def peer_head(folder: Path) -> Tensor:
    """Of the value network that both sides begin with."""
    from transformers import LlamaForSequenceClassification

    return LlamaForSequenceClassification.from_pretrained(folder / "value", dtype=torch.float32).score.weight.detach()


@torch.no_grad()
def give_head(value: Any, weight: Tensor) -> None:
    """Ours begins at zero, which would hide the gradient of all below."""
    value.head.weight.copy_(weight)


def gap(ours: Tensor, theirs: Tensor) -> float:
    """Relative L2."""
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


def main() -> None:
    side, folder, work = sys.argv[1], Path(sys.argv[2]), Work(**json.loads(sys.argv[3]))
    if side == "peer":
        record_peer(work, folder)
    else:
        print(json.dumps(compare_ours(work, folder)))


if __name__ == "__main__":
    main()
