"""Networks, rollouts and engines that engine_worker.py compares, and how far two engines are apart."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from deepspeed.utils import safe_get_full_grad
from torch import nn
from torch.distributed.tensor import DTensor

from destruct.batch import PromptBatch, RewardedBatch, RolloutBatch, ScoredBatch, TrainBatch
from destruct.config.deepspeed import (
    FrozenJSON,
    Optimizer,
    OptimizerParams,
    TrainingJSON,
    frozen_json,
    training_json,
)
from destruct.config.model import PolicyShape
from destruct.config.offload import Offload
from destruct.engine.deepspeed import DeepSpeedEngine, DeepSpeedFrozen
from destruct.engine.fsdp import FsdpEngine, FsdpFrozen
from destruct.engine.schedule import Schedule
from destruct.engine.single import SingleEngine
from destruct.engine.topology import Topology
from destruct.minibatch import Minibatch
from destruct.models.policy import build_copy, build_policy, take_buffers
from destruct.models.value import build_value
from destruct.ops.rows import LossCoefficients
from destruct.ppo.update import UpdateSettings, accumulate
from destruct.rollout.packing import pack

V, P, R = 64, 6, 7
LENGTHS = [1, 7, 3, 5, 2, 7]  # six rollouts for up to eight slots: some micro-batches are empty
LR = 1e-2
CLIP = 0.1  # far below the gradients' norms
EPS = 0.1  # large, so that Adam's first step shows the size of the clipped gradient and not its sign alone
COEFFICIENTS = LossCoefficients(clip_low=0.2, clip_high=0.2, kl_coef=0.1, kl="k3", entropy_coef=0.01)
EXACT = dataclasses.replace(COEFFICIENTS, kl="exact")
ANCHOR_WIDTH = 24
HEAD = "lm.model.embed_tokens.weight"  # where it is tied
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ALONE = Topology(0, 1, DEVICE)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# DeepSpeed has no float32 accumulation for bfloat16 at stage 0, and the config refuses that pair.
WAYS = {
    "float32": ("zero0", "zero1", "zero2", "zero3", "fsdp"),
    "bfloat16": ("zero1", "zero2", "zero3", "fsdp"),
}
"""The ways of sharding that a dtype can be trained by."""
ADAM = Optimizer(params=OptimizerParams(eps=EPS, betas=(0.9, 0.999)))


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


def rollouts(count: int = len(LENGTHS), mixed: bool = False) -> RolloutBatch:
    """`mixed`: prompts of 1 to P tokens, continuations of 0 to R."""
    g = torch.Generator().manual_seed(5)
    windows = torch.randint(2, V, (count, P + R), generator=g)
    responses = torch.randint(2, V, (count, R), generator=g)
    lengths = torch.tensor([LENGTHS[i % len(LENGTHS)] for i in range(count)])
    mask = torch.arange(R) < lengths[:, None]
    number = torch.arange(count)
    prompts = PromptBatch.full(0, P, windows, torch.zeros_like(number), number)
    if mixed:
        lengths = {"prompt_lengths": 1 + (number + 4) % P, "continuation_lengths": number * 3 % (R + 1)}
        prompts = dataclasses.replace(prompts, **lengths)
    cut_off = torch.zeros(count, dtype=torch.bool)
    return placed(RolloutBatch(prompts, torch.where(mask, responses, 1), mask, cut_off, teacher_forced=False))


def placed(batch: Any) -> Any:
    """A tensor, or a batch with all its tensors, on the device; everything is drawn on the CPU."""
    if isinstance(batch, torch.Tensor):
        return batch.to(DEVICE)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return dataclasses.replace(batch, **{f.name: placed(getattr(batch, f.name)) for f in dataclasses.fields(batch)})
    return batch


def trained_on(batch: RolloutBatch) -> TrainBatch:
    """The same invented scores for a rollout wherever it lands: they are looked up by its sample index."""
    g = torch.Generator().manual_seed(6)
    table = placed(torch.randn(5, 64, R, generator=g))
    grid = table[:, batch.prompts.sample] * batch.mask
    old, reference = grid[0] * 0.3 - 4.2, grid[1] * 0.3 - 4.2
    rewarded = RewardedBatch(batch, grid[3], grid[3].sum(1), grid[3].sum(1, keepdim=True))
    states = placed(torch.randn(64, R, ANCHOR_WIDTH, generator=g))[batch.prompts.sample][batch.mask]
    scored = ScoredBatch(rewarded, old * batch.mask, reference * batch.mask, grid[2], grid[3], states)
    return TrainBatch(scored, grid[4], grid[3] * 2)


def minibatches(
    accumulation: int, topology: Topology, count: int = 1, mixed: bool = False
) -> list[Minibatch[TrainBatch]]:
    order = torch.arange(len(LENGTHS) * count)
    packed = pack(rollouts(len(order), mixed), order, count, accumulation, topology)
    return [minibatch.map(trained_on) for minibatch in packed]


def training(stage: int, dtype: str, accumulation: int, offload: dict | None = None) -> TrainingJSON:
    return TrainingJSON.model_validate(
        {
            "gradient_accumulation_steps": accumulation,
            "bf16": {"enabled": dtype == "bfloat16"},
            # Smaller than the embeddings, larger than most others: buckets that are full, and one tensor beside them.
            "zero_optimization": {
                "stage": stage,
                "overlap_comm": stage == 3,
                "reduce_bucket_size": 2000,
                **(offload or {}),
            },
            "zero_force_ds_cpu_optimizer": False,
            "optimizer": {"type": "AdamW", "params": {"torch_adam": True, "eps": EPS}},
            "data_types": {"grad_accum_dtype": "fp32"},
            "communication_data_type": "fp32",
        }
    )


def sharded(
    module: nn.Module, way: str, dtype: str, accumulation: int, topology: Topology, offload: dict | None = None
) -> Any:
    if way == "fsdp":
        return FsdpEngine(module.to(DEVICE), ADAM, accumulation, CLIP, topology)
    # Another learning rate than the one that the steps give: it must not be the one that acts.
    json = training(int(way.removeprefix("zero")), dtype, accumulation, offload)
    return DeepSpeedEngine(module, training_json(json, 1, topology.world_size, 7 * LR, CLIP), topology)


def frozen_copy(way: str, topology: Topology, threshold: int = 0) -> Any:
    """A frozen copy of the bfloat16 policy, by the shipped JSON but for the threshold."""
    module = build_copy(shape(True), V, torch.bfloat16, "chunked")
    if way == "fsdp":
        with torch.device("meta"):
            empty = build_copy(shape(True), V, torch.bfloat16, "chunked")
        take_buffers(empty, module)
        return FsdpFrozen(empty, Offload(device="cpu", pin_memory=True), topology)
    shipped = (Path(__file__).parents[2] / "ds_configs" / "frozen_cpu_offload.json").read_text()
    config = frozen_json(FrozenJSON.model_validate_json(shipped), training(3, "bfloat16", 1))
    config["zero_optimization"]["stage3_param_persistence_threshold"] = threshold
    return DeepSpeedFrozen(module, config, topology)


def close(*engines: Any) -> None:
    """Let go of what DeepSpeed keeps of its engines."""
    for engine in engines:
        if hasattr(engine, "engine"):
            engine.engine.destroy()


def full_gradient(p: Any) -> torch.Tensor:
    """The gradient of a parameter over all ranks."""
    return p.grad.full_tensor() if isinstance(p.grad, DTensor) else safe_get_full_grad(p)


def networks(dtype: str, tied: bool) -> tuple[nn.Module, nn.Module]:
    value = build_value(shape(tied), V, DTYPES[dtype], 2)
    # The scalar head starts at 0, which would hide the body's gradient.
    nn.init.normal_(value.head.weight, std=0.5, generator=torch.Generator().manual_seed(3))
    # Untied ones also keep their activations at the borders of the layers alone.
    return build_policy(shape(tied), V, DTYPES[dtype], 1, "chunked", checkpointing=not tied), value


def yardstick(dtype: str, tied: bool) -> tuple[SingleEngine, SingleEngine]:
    """Plain torch in one process, its embeddings' gradients dense in the dtype of the weights, as the others' are."""
    policy, value = (SingleEngine(m.to(DEVICE), ADAM, 1, CLIP) for m in networks(dtype, tied))
    for part in (*policy.module.modules(), *value.module.modules()):
        if isinstance(part, nn.Embedding):
            part.sparse = False
    return policy, value


def add_gradients(
    policy: Any,
    value: Any,
    accumulation: int,
    dtype: str,
    coefficients: LossCoefficients,
    topology: Topology,
    mixed: bool = False,
) -> None:
    """Forward and backward of one minibatch, against a reference of another width where its states are read."""
    head = placed(torch.randn(V, ANCHOR_WIDTH, generator=torch.Generator().manual_seed(8))).to(DTYPES[dtype])

    def cast(train: TrainBatch) -> TrainBatch:
        states = train.scored.reference_states.to(DTYPES[dtype]) if coefficients.exact_kl else None
        return dataclasses.replace(train, scored=dataclasses.replace(train.scored, reference_states=states))

    minibatch = minibatches(accumulation, topology, mixed=mixed)[0].map(cast)
    accumulate(policy, value, minibatch, coefficients, settings(), topology.device, head)


def difference(got: torch.Tensor, want: torch.Tensor) -> float:
    scale = want.double().norm().item() or 1.0
    return (got.double() - want.double()).norm().item() / scale


def compare(engine: Any, single: SingleEngine) -> dict[str, float]:
    """Worst relative difference of the gradients, of the norm, and of the weights after one step."""
    pairs = list(zip(engine.module.parameters(), single.masters, strict=True))
    gradients = [difference(full_gradient(p), master.grad) for p, master in pairs]
    norm = torch.stack([master.grad.norm() for master in single.masters]).norm().item()
    got = engine.grad_norm()
    single.grad_norm()
    for each in (engine, single):
        each.step(LR)
    whole = [
        difference(a, b) for (_, a), (_, b) in zip(engine.tensors_in_full(), single.tensors_in_full(), strict=True)
    ]
    return {"gradient": max(gradients), "norm": abs(got - norm) / norm, "weights": max(whole)}
