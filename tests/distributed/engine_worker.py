"""What every rank does for test_engines.py: all engine cases in one launch; rank 0 writes the figures as JSON."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from deepspeed.utils import safe_get_full_grad
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from destruct.batch import Minibatch, PromptBatch, RewardedBatch, RolloutBatch, ScoredBatch, TrainBatch
from destruct.config.deepspeed import FrozenJSON, Optimizer, OptimizerParams, TrainingJSON, frozen_json, training_json
from destruct.config.model import PolicyShape
from destruct.engine import topology as ranks
from destruct.engine.deepspeed import DeepSpeedEngine, DeepSpeedFrozen
from destruct.engine.schedule import Schedule
from destruct.engine.single import SingleEngine
from destruct.engine.topology import Topology
from destruct.exits import Exit, leave
from destruct.models.policy import build_copy, build_policy, llama_config
from destruct.models.value import build_value
from destruct.ops.rows import LossCoefficients
from destruct.ppo.update import UpdateSettings, accumulate, ppo_update
from destruct.rollout.generate import Sampling, generate
from destruct.rollout.packing import pack
from destruct.rollout.score import response_logprobs

V, P, R = 64, 6, 7
OFFLOADED = {"offload_optimizer": {"device": "cpu"}}
LENGTHS = [1, 7, 3, 5, 2, 7]  # six rollouts for up to eight slots: some micro-batches are empty
LR = 1e-2
CLIP = 0.1  # far below the gradients' norms
EPS = 0.1  # large, so that Adam's first step shows the size of the clipped gradient and not its sign alone
COEFFICIENTS = LossCoefficients(clip_low=0.2, clip_high=0.2, kl_coef=0.1, kl_estimator="k3", entropy_coef=0.01)
ALONE = Topology(0, 1, torch.device("cpu"))
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# DeepSpeed has no float32 accumulation for bfloat16 at stage 0, and the config refuses that pair.
STAGES = [("float32", stage) for stage in range(4)] + [("bfloat16", stage) for stage in range(1, 4)]


def shape(tied: bool) -> PolicyShape:
    return PolicyShape(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=tied,
        initializer_range=0.3,
    )


def settings(lr: float = LR) -> UpdateSettings:
    constant = Schedule(lr, None, 1)
    return UpdateSettings(
        epochs=1,
        temperature=0.8,
        ptx_coef=0.5,
        value_clip_range=0.2,
        early_stop_kl=None,
        policy_lr=constant,
        value_lr=constant,
    )


def rollouts(count: int = len(LENGTHS)) -> RolloutBatch:
    g = torch.Generator().manual_seed(5)
    windows = torch.randint(2, V, (count, P + R), generator=g)
    responses = torch.randint(2, V, (count, R), generator=g)
    lengths = torch.tensor([LENGTHS[i % len(LENGTHS)] for i in range(count)])
    mask = torch.arange(R) < lengths[:, None]
    prompts = PromptBatch(0, P, windows, torch.zeros(count, dtype=torch.int64), torch.arange(count))
    return RolloutBatch(
        prompts, torch.where(mask, responses, 1), mask, torch.zeros(count, dtype=torch.bool), teacher_forced=False
    )


def trained_on(batch: RolloutBatch) -> TrainBatch:
    """The same invented scores for a rollout wherever it lands: they are looked up by its sample index."""
    g = torch.Generator().manual_seed(6)
    table = torch.randn(5, 64, R, generator=g)
    grid = table[:, batch.prompts.sample] * batch.mask
    old, reference = grid[0] * 0.3 - 4.2, grid[1] * 0.3 - 4.2
    rewarded = RewardedBatch(batch, grid[3], grid[3].sum(1), grid[3].sum(1, keepdim=True))
    scored = ScoredBatch(rewarded, old * batch.mask, reference * batch.mask, grid[2], grid[3])
    return TrainBatch(scored, grid[4], grid[3] * 2)


def minibatches(accumulation: int, topology: Topology, count: int = 1) -> list[Minibatch[TrainBatch]]:
    order = torch.arange(len(LENGTHS) * count)
    packed = pack(rollouts(len(order)), order, count, accumulation, topology)
    return [minibatch.map(trained_on) for minibatch in packed]


def training(stage: int, dtype: str, accumulation: int, offload: dict | None = None) -> TrainingJSON:
    return TrainingJSON.model_validate(
        {
            "gradient_accumulation_steps": accumulation,
            "bf16": {"enabled": dtype == "bfloat16"},
            "zero_optimization": {"stage": stage, "overlap_comm": stage == 3, **(offload or {})},
            "zero_force_ds_cpu_optimizer": False,
            "optimizer": {"type": "AdamW", "params": {"torch_adam": True, "eps": EPS}},
            "data_types": {"grad_accum_dtype": "fp32"},
            "communication_data_type": "fp32",
        }
    )


def sharded(
    module: nn.Module, stage: int, dtype: str, accumulation: int, topology: Topology, offload: dict | None = None
) -> DeepSpeedEngine:
    # Another learning rate than the one that the steps give: it must not be the one that acts.
    json_ = training_json(training(stage, dtype, accumulation, offload), 1, topology.world_size, 7 * LR, CLIP)
    return DeepSpeedEngine(module, json_, topology)


def networks(dtype: str, tied: bool) -> tuple[nn.Module, nn.Module]:
    value = build_value(shape(tied), V, DTYPES[dtype], 2)
    # The scalar head starts at 0, which would hide the body's gradient.
    nn.init.normal_(value.head.weight, std=0.5, generator=torch.Generator().manual_seed(3))
    return build_policy(shape(tied), V, DTYPES[dtype], 1, "chunked"), value


def yardstick(dtype: str, tied: bool) -> tuple[SingleEngine, SingleEngine]:
    """One process, one micro-batch holding everything; the gradients are left in the masters."""
    adam = Optimizer(params=OptimizerParams(eps=EPS, betas=(0.9, 0.999)))
    policy, value = (SingleEngine(m, adam, 1, CLIP) for m in networks(dtype, tied))
    accumulate(policy, value, minibatches(1, ALONE)[0], COEFFICIENTS, settings(), ALONE.device)
    return policy, value


def difference(got: torch.Tensor, want: torch.Tensor) -> float:
    scale = want.double().norm().item() or 1.0
    return (got.double() - want.double()).norm().item() / scale


def compare(engine: DeepSpeedEngine, single: SingleEngine) -> dict[str, float]:
    """Worst relative difference of the gradients, of the norm, and of the weights after one step."""
    pairs = list(zip(engine.module.parameters(), single.masters, strict=True))
    gradients = [difference(safe_get_full_grad(p), master.grad) for p, master in pairs]
    norm = torch.stack([master.grad.norm() for master in single.masters]).norm().item()
    got = engine.step(LR)
    single.step(LR)
    whole = [
        difference(a, b) for (_, a), (_, b) in zip(engine.tensors_in_full(), single.tensors_in_full(), strict=True)
    ]
    return {"gradient": max(gradients), "norm": abs(got - norm) / norm, "weights": max(whole)}


def gradient_cases(topology: Topology) -> dict[str, dict[str, float]]:
    results = {}
    cases = [(dtype, stage, accumulation, True) for dtype, stage in STAGES for accumulation in (1, 2, 4)]
    cases += [(dtype, stage, 2, False) for dtype, stage in STAGES]
    for dtype, stage, accumulation, tied in cases:
        engines = [sharded(m, stage, dtype, accumulation, topology) for m in networks(dtype, tied)]
        minibatch = minibatches(accumulation, topology)[0]
        accumulate(engines[0], engines[1], minibatch, COEFFICIENTS, settings(), topology.device)
        for role, engine, single in zip(("policy", "value"), engines, yardstick(dtype, tied), strict=True):
            name = f"{dtype} stage{stage} accumulation{accumulation} {'tied' if tied else 'untied'} {role}"
            results[name] = compare(engine, single)
            engine.engine.destroy()
    return results


def poisoned(minibatch: Minibatch[TrainBatch]) -> Minibatch[TrainBatch]:
    def poison(train: TrainBatch) -> TrainBatch:
        return TrainBatch(train.scored, train.advantages, torch.full_like(train.returns, float("nan")))

    return minibatch.map(poison)


def skip_cases(topology: Topology) -> dict[str, Any]:
    """Two minibatches, the value loss of one not finite on the last rank alone, against the other one by itself."""
    results: dict[str, Any] = {}
    for dtype, stage, offload in [(d, s, None) for d, s in STAGES] + [("bfloat16", 2, OFFLOADED)]:
        clean = minibatches(2, topology, count=2)
        bad = [poisoned(clean[0]) if topology.rank == topology.world_size - 1 else clean[0], clean[1]]
        after = []
        for batches in (bad, [clean[1]]):
            engines = [sharded(m, stage, dtype, 2, topology, offload) for m in networks(dtype, tied=True)]
            policy, value = engines
            order = torch.Generator().manual_seed(0)
            stats = ppo_update(policy, value, batches, COEFFICIENTS, settings(), 0, order, topology)
            # A second, clean update shows whether anything of the dropped gradient is left.
            ppo_update(policy, value, [clean[1]], COEFFICIENTS, settings(), 1, order, topology)
            after.append([t.clone() for engine in engines for _, t in engine.tensors_in_full()])
            if batches is bad:
                counts = {"skipped": stats.skipped, "steps": stats.steps}
            for engine in engines:
                engine.engine.destroy()
        equal = all(torch.equal(a, b) for a, b in zip(*after, strict=True))
        results[f"{dtype} stage{stage}{' offloaded' if offload else ''}"] = {**counts, "equal": equal}
    return results


def refresh_case(stage: int, threshold: int, topology: Topology) -> dict[str, float]:
    """Two forwards of the frozen engine, policy steps that move the logprobs, a refresh, the next forward.

    Beyond a threshold of 0 parameters stay gathered after a forward: the config refuses it, the engine copes with it.
    """
    json_ = training(stage, "bfloat16", 1)
    policy_net, value_net = networks("bfloat16", tied=True)
    policy, value = (sharded(m, stage, "bfloat16", 1, topology) for m in (policy_net, value_net))
    frozen_file = Path(__file__).parents[2] / "ds_configs" / "frozen_cpu_offload.json"
    config = frozen_json(FrozenJSON.model_validate_json(frozen_file.read_text()), json_)
    config["zero_optimization"]["stage3_param_persistence_threshold"] = threshold
    frozen = DeepSpeedFrozen(build_copy(shape(True), V, torch.bfloat16, "chunked"), config, topology)
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
    padding = torch.cat([torch.zeros(0), *shard_padding(policy, topology), *shard_padding(value, topology)]).abs()
    padded = topology.sum(torch.tensor([len(padding)])).item()
    largest = topology.max(torch.cat([torch.zeros(1), padding]).amax()).item()
    for engine in (policy, value, frozen):
        engine.engine.destroy()
    return {
        "moved": moved,
        "frozen_moved_without_refresh": stale,
        "after_refresh": fresh,
        "after_load": loaded,
        "padded": padded,
        "largest_padding": largest,
    }


def shard_padding(engine: DeepSpeedEngine, topology: Topology) -> list[Tensor]:
    """What lies beyond the last element of each stage-3 parameter: in the rank's shard, and in its master."""
    if engine.stage < 3:
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


def replica_case(topology: Topology) -> dict[str, Any]:
    """Replica against engine, recorded logprobs against plain transformers, and the rollouts themselves."""
    policy = sharded(networks("float32", tied=True)[0], 3, "float32", 1, topology)
    replica = build_copy(shape(True), V, torch.float32, "chunked")
    policy.fill(replica)
    plain = LlamaForCausalLM._from_config(llama_config(shape(True), V), dtype=torch.float32)
    plain.load_state_dict({n.removeprefix("lm."): t for n, t in policy.tensors_in_full()}, strict=False)
    batch = generate(replica, rollouts(24).prompts, topology, 3, Sampling(0.8, eos_id=0, pad_id=1))
    recorded = response_logprobs(policy, batch, 0.8, ptx=False)
    with torch.no_grad():
        logprobs = torch.log_softmax(plain(batch.tokens).logits / 0.8, -1)[:, P - 1 : -1]
    expected = logprobs.gather(2, batch.responses[:, :, None]).squeeze(2)
    gap = ((recorded - expected) * batch.mask).abs().max().item()
    policy.engine.destroy()
    return {"logprob_gap": gap, "tokens": batch.tokens.tolist(), "lengths": batch.lengths.tolist()}


def main() -> None:
    topology = ranks.start()
    results = {
        "gradients": gradient_cases(topology),
        "skips": skip_cases(topology),
        "refresh": {f"stage{s} threshold{t}": refresh_case(s, t, topology) for s, t in ((1, 0), (3, 0), (3, 10**5))},
        "replica": replica_case(topology),
        "unlike": [topology.unlike_the_first(topology.rank), topology.unlike_the_first("same")],
    }
    if topology.is_first:
        Path(sys.argv[1]).write_text(json.dumps(results), encoding="utf-8")
    ranks.stop()


if __name__ == "__main__":
    main()
    leave(Exit.DONE)
