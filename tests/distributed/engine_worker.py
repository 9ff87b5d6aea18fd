"""What every rank does for test_engines.py: all engine cases in one launch; rank 0 writes the figures as JSON."""

import copy
import functools
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification, LlamaForCausalLM

from destruct.batch import TrainBatch
from destruct.engine import topology as ranks
from destruct.engine.fsdp import FsdpFrozen
from destruct.engine.topology import Topology
from destruct.exits import Exit, leave
from destruct.minibatch import Minibatch
from destruct.models.policy import build_copy, llama_config
from destruct.models.reward_model import RewardModel
from destruct.ops.rows import ScoreRows
from destruct.ppo.update import ppo_update
from destruct.rollout.generate import Sampling, generate
from destruct.rollout.score import policy_inputs, response_logprobs
from tests.distributed.engine_setup import (
    ALONE,
    COEFFICIENTS,
    EXACT,
    HEAD,
    WAYS,
    V,
    add_gradients,
    close,
    compare,
    frozen_copy,
    minibatches,
    networks,
    placed,
    rollouts,
    settings,
    shape,
    sharded,
    yardstick,
)

CPU = {"device": "cpu"}
OFFLOADED = (
    ("bfloat16", "zero2", {"offload_optimizer": CPU}),
    ("bfloat16", "zero3", {"offload_optimizer": CPU, "offload_param": CPU}),
)
REFRESHED = (("zero1", 0), ("zero3", 0), ("zero3", 10**5), ("fsdp", 0))


def gradient_cases(topology: Topology) -> dict[str, dict[str, float]]:
    results = {}
    kinds = [(dtype, way) for dtype, ways in WAYS.items() for way in ways]
    for (dtype, way), (accumulation, tied) in itertools.product(kinds, [(1, True), (2, True), (4, True), (2, False)]):
        engines = [sharded(m, way, dtype, accumulation, topology) for m in networks(dtype, tied)]
        coefficients = EXACT if accumulation == 4 or not tied else COEFFICIENTS
        add_gradients(*engines, accumulation, dtype, coefficients, topology)
        plain = yardstick(dtype, tied)
        add_gradients(*plain, 1, dtype, coefficients, ALONE)  # one micro-batch holds everything
        for role, engine, single in zip(("policy", "value"), engines, plain, strict=True):
            name = f"{dtype} {way} accumulation{accumulation} {'tied' if tied else 'untied'} {role}"
            results[name] = compare(engine, single)
        close(*engines)
    return results


def length_cases(topology: Topology) -> dict[str, dict[str, float]]:
    """Prompts and continuations of any length, tied and not (which checkpoints its layers)."""
    results = {}
    for way, tied in itertools.product(("zero3", "fsdp"), (True, False)):
        engines = [sharded(m, way, "float32", 2, topology) for m in networks("float32", tied)]
        plain = yardstick("float32", tied)
        add_gradients(*engines, 2, "float32", COEFFICIENTS, topology, mixed=True)
        # The same micro-batches: one rollout by itself may round to 5e-6 (float64 tells), as any split may.
        add_gradients(*plain, 2 * topology.world_size, "float32", COEFFICIENTS, ALONE, mixed=True)
        for role, engine, single in zip(("policy", "value"), engines, plain, strict=True):
            results[f"{way} {'tied' if tied else 'untied'} {role}"] = compare(engine, single)
        close(*engines)
    return results


def score_cases(topology: Topology) -> dict[str, dict[str, float]]:
    """A loss on the policy's scores, whose backward multiplies again after the engine has let the weight go."""
    results = {}
    for way, tied in itertools.product(("zero1", "zero3", "fsdp"), (True, False)):
        engine = sharded(networks("float32", tied)[0], way, "float32", 1, topology)
        single = yardstick("float32", tied)[0]
        parts = {engine: minibatches(1, topology), single: minibatches(1, ALONE)}
        for trained, (minibatch,) in parts.items():
            rollouts = minibatch.micro_batches[0].scored.rollouts
            inputs = policy_inputs(rollouts, 0.8, ptx=True)
            scores = trained(inputs.tokens, inputs.rows, ScoreRows(inputs.targets, inputs.temperature))
            trained.backward((scores.logprobs.tanh() + 0.1 * scores.entropy.square() + scores.log_sum_exp).sum())
        results[f"{way} {'tied' if tied else 'untied'}"] = compare(engine, single)
        close(engine)
    return results


def poisoned(minibatch: Minibatch[TrainBatch]) -> Minibatch[TrainBatch]:
    def poison(train: TrainBatch) -> TrainBatch:
        return TrainBatch(train.scored, train.advantages, torch.full_like(train.returns, float("nan")))

    return minibatch.map(poison)


def skip_cases(topology: Topology) -> dict[str, Any]:
    """Two minibatches, the value loss of one not finite on the last rank alone, against the other one by itself."""
    results: dict[str, Any] = {}
    kinds = [(dtype, way, None) for dtype, ways in WAYS.items() for way in ways]
    for dtype, way, offload in [*kinds, *OFFLOADED]:
        clean = minibatches(2, topology, count=2)
        bad = [poisoned(clean[0]) if topology.rank == topology.world_size - 1 else clean[0], clean[1]]
        after = []
        for batches in (bad, [clean[1]]):
            engines = [sharded(m, way, dtype, 2, topology, offload) for m in networks(dtype, tied=True)]
            policy, value = engines
            order = torch.Generator().manual_seed(0)
            stats = ppo_update(policy, value, batches, COEFFICIENTS, settings(), 0, order, topology)
            # A second, clean update shows whether anything of the dropped gradient is left.
            ppo_update(policy, value, [clean[1]], COEFFICIENTS, settings(), 1, order, topology)
            after.append([t.clone() for engine in engines for _, t in engine.tensors_in_full()])
            if batches is bad:
                counts = {"skipped": stats.skipped, "steps": stats.steps}
            close(*engines)
        equal = all(torch.equal(a, b) for a, b in zip(*after, strict=True))
        results[f"{dtype} {way}{' offloaded' if offload else ''}"] = {**counts, "equal": equal}
    return results


def gradient_skip_cases(topology: Topology) -> dict[str, Any]:
    """All losses finite, the value network's gradient not, on the last rank alone; then a clean update, against it."""
    results: dict[str, Any] = {}
    clean = minibatches(2, topology, count=2)
    kinds = [(dtype, way, None) for dtype, ways in WAYS.items() for way in ways]
    for dtype, way, offload in [*kinds, *OFFLOADED]:
        after = []
        for broken in (True, False):
            policy, value = (sharded(m, way, dtype, 2, topology, offload) for m in networks(dtype, tied=True))
            order = torch.Generator().manual_seed(0)
            if broken:
                last = topology.rank == topology.world_size - 1
                hook = value.module.head.register_forward_hook(functools.partial(spoil, last))
                stats = ppo_update(policy, value, [clean[0]], COEFFICIENTS, settings(), 0, order, topology)
                hook.remove()
            ppo_update(policy, value, [clean[1]], COEFFICIENTS, settings(), 0, order, topology)
            after.append([t.clone() for engine in (policy, value) for _, t in engine.tensors_in_full()])
            close(policy, value)
        equal = all(torch.equal(a, b) for a, b in zip(*after, strict=True))
        results[f"{dtype} {way}{' offloaded' if offload else ''}"] = [stats.steps, stats.not_finite, equal]
    return results


def spoil(here: bool, head: Any, inputs: Any, values: Tensor) -> Tensor:
    if here and values.requires_grad:
        values.register_hook(lambda gradient: gradient * float("inf"))
    return values


def refresh_case(way: str, threshold: int, topology: Topology) -> dict[str, float]:
    """Two forwards of the frozen engine, policy steps that move the logprobs, a refresh, the next forward.

    Beyond a threshold of 0 parameters stay gathered after a forward: the config refuses it, the engine copes with it.
    """
    policy, value = (sharded(m, way, "bfloat16", 1, topology) for m in networks("bfloat16", tied=True))
    frozen = frozen_copy(way, topology, threshold)
    frozen.refresh(policy)
    batch, moved, stale, fresh = rollouts(), 0.0, 0.0, 0.0
    for _ in range(3):
        for _ in range(2):
            before = response_logprobs(frozen, batch, 1.0, ptx=False)
        order = torch.Generator().manual_seed(0)
        ppo_update(policy, value, minibatches(1, topology), COEFFICIENTS, settings(), 0, order, topology)
        now = response_logprobs(policy, batch, 1.0, ptx=False)
        stale = max(stale, (response_logprobs(frozen, batch, 1.0, ptx=False) - before).abs().max().item())
        moved = max(moved, (now - before).abs().max().item())
        frozen.refresh(policy)
        fresh = max(fresh, (response_logprobs(frozen, batch, 1.0, ptx=False) - now).abs().max().item())
    whole = {name: t.clone() for name, t in frozen.tensors_in_full()}
    ppo_update(policy, value, minibatches(1, topology), COEFFICIENTS, settings(), 0, order, topology)
    frozen.refresh(policy)
    frozen.load_tensors(whole)
    loaded = (response_logprobs(frozen, batch, 1.0, ptx=False) - now).abs().max().item()
    nothing = torch.zeros(0, device=topology.device)
    padding = torch.cat([nothing, *shard_padding(policy, topology), *shard_padding(value, topology)]).abs()
    padded = topology.sum(torch.tensor([len(padding)])).item()
    largest = topology.max(torch.cat([torch.zeros(1, device=topology.device), padding]).amax()).item()
    head = (frozen.head() - whole[HEAD]).abs().max().item()
    close(policy, value, frozen)
    return {
        "head": head,
        "moved": moved,
        "frozen_moved_without_refresh": stale,
        "after_refresh": fresh,
        "after_load": loaded,
        "padded": padded,
        "largest_padding": largest,
    }


def load_case(way: str, tied: bool, topology: Topology, folder: Path) -> dict[str, float]:
    """A checkpoint is loaded into networks that have already answered without gradients, as at the start of a run."""
    batch, order = rollouts(), torch.Generator()
    policy, value = (sharded(m, way, "bfloat16", 1, topology) for m in networks("bfloat16", tied))
    before = response_logprobs(policy, batch, 1.0, ptx=False)
    for _ in range(3):
        ppo_update(policy, value, minibatches(1, topology), COEFFICIENTS, settings(), 0, order, topology)
    trained = response_logprobs(policy, batch, 1.0, ptx=False)
    policy.save(folder, "policy")
    close(policy, value)
    policy = sharded(networks("bfloat16", tied)[0], way, "bfloat16", 1, topology)
    response_logprobs(policy, batch, 1.0, ptx=False)
    policy.load(folder, "policy", topology.world_size, folder)
    loaded = response_logprobs(policy, batch, 1.0, ptx=False)
    close(policy)
    return {"moved": (trained - before).abs().max().item(), "gap": (loaded - trained).abs().max().item()}


def classifier_case(topology: Topology) -> float:
    """A reward model that reads an embedding which it never calls, sharded by FSDP, against plain transformers."""
    config = DebertaV2Config(vocab_size=V, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_labels=1)
    config.update({"intermediate_size": 64, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]})
    torch.manual_seed(0)
    plain = RewardModel(DebertaV2ForSequenceClassification(config).eval().to(topology.device))
    frozen = FsdpFrozen(copy.deepcopy(plain), None, topology)
    tokens = placed(torch.tensor([[5, 6, 7, 8], [9, 3, 0, 0]]))
    mask = placed(torch.tensor([[True] * 4, [True, True, False, False]]))
    with torch.no_grad():
        return (frozen(tokens, mask) - plain(tokens, mask)).abs().max().item()


def shard_padding(engine: Any, topology: Topology) -> list[Tensor]:
    """What lies beyond the last element of each ZeRO-3 parameter: in the rank's shard, and in its master."""
    if getattr(engine, "stage", 0) < 3:
        return []
    found = []
    for group, masters in zip(
        engine.engine.optimizer.fp16_groups, engine.engine.optimizer.fp32_partitioned_groups_flat, strict=True
    ):
        parts = masters.detach().split([p.ds_tensor.numel() for p in group])
        for p, master in zip(group, parts, strict=True):
            used = max(0, min(p.ds_tensor.numel(), p.ds_numel - topology.rank * p.ds_tensor.numel()))
            found += [p.ds_tensor.detach().view(-1)[used:].float(), master[used:]]
    return found


def replica_case(topology: Topology, way: str, mixed: bool) -> dict[str, Any]:
    """Replica against engine, recorded logprobs against plain transformers on bare sequences, and the rollouts."""
    policy = sharded(networks("float32", tied=True)[0], way, "float32", 1, topology)
    replica = build_copy(shape(True), V, torch.float32, "chunked").to(topology.device)
    policy.fill(replica)
    plain = LlamaForCausalLM._from_config(llama_config(shape(True), V), dtype=torch.float32)
    plain.load_state_dict({n.removeprefix("lm."): t for n, t in policy.tensors_in_full()}, strict=False)
    plain.to(topology.device)
    batch = generate(replica, rollouts(24, mixed).prompts, topology, 3, Sampling(0.8, eos_id=5, pad_id=1))
    recorded = response_logprobs(policy, batch, 0.8, ptx=False)
    gap = 0.0
    for prompt, said, got in zip(batch.prompts.prompt_ids(), batch.response_ids(), recorded, strict=True):
        with torch.no_grad():
            logits = plain(torch.tensor([prompt + said], device=topology.device)).logits[0, len(prompt) - 1 : -1]
        sampled = torch.tensor(said, device=topology.device)
        expected = torch.log_softmax(logits / 0.8, -1).gather(1, sampled[:, None]).squeeze(1)
        gap = max(gap, (got[: len(said)] - expected).abs().max().item())
    close(policy)
    return {"logprob_gap": gap, "tokens": batch.tokens.tolist(), "lengths": batch.lengths.tolist()}


def main() -> None:
    topology, folder = ranks.start(), Path(sys.argv[1]).with_suffix("")
    results = {
        "gradients": gradient_cases(topology),
        "scores": score_cases(topology),
        "skips": skip_cases(topology),
        "gradient skips": gradient_skip_cases(topology),
        "refresh": {f"{way} threshold{t}": refresh_case(way, t, topology) for way, t in REFRESHED},
        "loads": {
            f"{way} {'tied' if tied else 'untied'}": load_case(way, tied, topology, folder / f"{way} {tied}")
            for way, tied in itertools.product(("zero3", "fsdp"), (True, False))
        },
        "classifier": classifier_case(topology),
        "lengths": length_cases(topology),
        "replica": {
            f"{way} {prompts}": replica_case(topology, way, prompts == "mixed")
            for way, prompts in itertools.product(("zero3", "fsdp"), ("full", "mixed"))
        },
        "unlike": [topology.unlike_the_first(topology.rank), topology.unlike_the_first("same")],
    }
    if topology.is_first:
        Path(sys.argv[1]).write_text(json.dumps(results), encoding="utf-8")
    ranks.stop()


if __name__ == "__main__":
    main()
    leave(Exit.DONE)
