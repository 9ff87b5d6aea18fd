"""The engine section, DeepSpeed's own JSON files, and the batch algebra that ties both to the world size.

DeepSpeed accepts misspelt top-level keys, `"auto"` where it cannot resolve it, and numbers written as strings, and
fails (or does something else) minutes later; so every key is typed here and checked before any model exists.
"""

import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from destruct.config.base import Section, validate
from destruct.errors import DestructError

Auto = Literal["auto"]


class EngineConfig(Section):
    """What runs the networks.  Accumulation, bf16, clipping, optimizer and scheduler stand in the DeepSpeed JSON."""

    backend: Literal["deepspeed", "single"] = "deepspeed"
    """`deepspeed` (ZeRO 0 to 3, by the JSON), or `single`: plain torch in one process, float32 master weights."""
    deepspeed: str = "ds_configs/zero3.json"
    """DeepSpeed JSON of the two training engines; looked up from the working folder, then beside this YAML file."""
    frozen: str = "ds_configs/frozen_cpu_offload.json"
    """DeepSpeed JSON of the frozen, inference-only engine."""
    loss: Literal["chunked", "reference"] = "chunked"
    """Implementation of the fused loss: `chunked` never holds full logits; `reference` is the plain definition."""


class Bf16(Section):
    """bfloat16 parameters with float32 master weights."""

    enabled: bool = False


class Offload(Section):
    """Where a sharded tensor rests."""

    device: Literal["cpu", "none"] = "none"
    pin_memory: bool = False


class ZeroOptimization(Section):
    """DeepSpeed's `zero_optimization` block."""

    stage: Literal[0, 1, 2, 3] = 3
    offload_param: Offload | None = None
    offload_optimizer: Offload | None = None
    overlap_comm: bool | None = None
    contiguous_gradients: bool | None = None
    reduce_scatter: bool | None = None
    round_robin_gradients: bool | None = None
    reduce_bucket_size: int | None = Field(None, gt=0)
    allgather_bucket_size: int | None = Field(None, gt=0)
    sub_group_size: int | None = Field(None, gt=0)
    stage3_prefetch_bucket_size: int | None = Field(None, ge=0)
    stage3_param_persistence_threshold: int | None = Field(None, ge=0)
    stage3_max_live_parameters: int | None = Field(None, ge=0)
    stage3_max_reuse_distance: int | None = Field(None, ge=0)
    stage3_gather_16bit_weights_on_model_save: bool | None = None
    memory_efficient_linear: bool = False


class OptimizerParams(Section):
    """Arguments of Adam."""

    lr: float | Auto = "auto"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-5, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    torch_adam: bool = True


class Optimizer(Section):
    """DeepSpeed's `optimizer` block."""

    type: Literal["AdamW", "Adam"] = "AdamW"
    params: OptimizerParams = OptimizerParams()


class SchedulerParams(Section):
    """Arguments of the learning rate schedules; `auto` is filled from the run's plan."""

    warmup_min_lr: float | None = Field(None, ge=0)
    warmup_max_lr: float | Auto | None = None
    warmup_num_steps: int = Field(100, ge=1)
    warmup_type: Literal["linear", "log"] | None = None
    warmup_min_ratio: float | None = Field(None, ge=0, le=1)
    cos_min_ratio: float | None = Field(None, ge=0, le=1)
    total_num_steps: int | Auto | None = None


class Scheduler(Section):
    """DeepSpeed's `scheduler` block."""

    type: Literal["WarmupLR", "WarmupDecayLR", "WarmupCosineLR"]
    params: SchedulerParams = SchedulerParams()


class DataTypes(Section):
    """Gradients are always accumulated in float32."""

    grad_accum_dtype: Literal["fp32"]


class TrainingJSON(Section):
    """The DeepSpeed JSON of a training engine."""

    train_batch_size: int | Auto = "auto"
    train_micro_batch_size_per_gpu: int | Auto = "auto"
    gradient_accumulation_steps: int = Field(ge=1)
    bf16: Bf16 = Bf16()
    zero_optimization: ZeroOptimization
    optimizer: Optimizer
    scheduler: Scheduler | None = None
    gradient_clipping: float | Auto = "auto"
    data_types: DataTypes
    communication_data_type: Literal["fp32"]
    steps_per_print: int | None = None
    wall_clock_breakdown: bool = False
    zero_allow_untested_optimizer: bool | None = None
    zero_force_ds_cpu_optimizer: bool | None = None

    @model_validator(mode="after")
    def _accumulates_in_float32(self) -> Self:
        if self.bf16.enabled and self.zero_optimization.stage == 0:
            raise ValueError(
                "bf16 with zero_optimization.stage 0 has no float32 gradient accumulation in DeepSpeed; use stage 1 to 3"
            )
        return self


class FrozenZero(ZeroOptimization):
    """ZeRO-3 whose small parameters are dropped after each forward.

    Any other threshold leaves gathered copies behind, and a refresh of them is silently not seen.
    """

    stage: Literal[3] = 3
    stage3_param_persistence_threshold: Literal[0]


class FrozenJSON(Section):
    """The DeepSpeed JSON of the frozen engine: inference only, so it has no optimizer."""

    train_micro_batch_size_per_gpu: int = Field(1, ge=1)
    bf16: Bf16 | Auto = "auto"
    zero_optimization: FrozenZero
    steps_per_print: int | None = None
    wall_clock_breakdown: bool = False


def read_json(path: Path, section: type[Section]) -> Any:
    """Read and validate a DeepSpeed JSON; numbers must be numbers (`"1e-3"` is refused, as DeepSpeed should).

    Raises:
        DestructError: naming the file, the key and the nearest known key.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DestructError(f"{path}, line {error.lineno} is not JSON: {error.msg}", "mend the line") from None
    if not isinstance(values, dict):
        raise DestructError(f"{path} is not a JSON object", "start from ds_configs/zero3.json")
    for dotted, value in _string_leaves(values, ""):
        if _is_number(value):
            raise DestructError(f"{path}: {dotted} = {value!r} is a string, not a number", f"write {dotted}: {value}")
    if section is TrainingJSON and (values.get("fp16") or {}).get("enabled"):
        raise DestructError(f"{path}: fp16 is not supported", 'use "bf16": {"enabled": true}')
    values.pop("fp16", None)
    return validate(section, values, str(path))


def _string_leaves(values: dict[str, Any], prefix: str) -> list[tuple[str, str]]:
    leaves: list[tuple[str, str]] = []
    for key, value in values.items():
        dotted = f"{prefix}.{key}" if prefix else key
        if isinstance(value, dict):
            leaves += _string_leaves(value, dotted)
        elif isinstance(value, str):
            leaves.append((dotted, value))
    return leaves


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def micro_batch_size(batch_size: int, accumulation: int, world_size: int, minibatches: int, json_name: str) -> int:
    """Rollouts per micro-batch, on average: B / (accumulation x world x minibatches).

    Raises:
        DestructError: B does not divide; the remedy names the nearest values that do.
    """
    per_pass = accumulation * world_size * minibatches
    if batch_size % per_pass == 0:
        return batch_size // per_pass
    below, above = batch_size // per_pass * per_pass, -(-batch_size // per_pass) * per_pass
    values = f"{below} or {above}" if below else str(above)
    raise DestructError(
        f"rollout.batch_size={batch_size} does not divide into gradient_accumulation_steps={accumulation} ({json_name})"
        f" x {world_size} ranks x ppo.minibatches={minibatches} = {per_pass} micro-batches",
        f"set rollout.batch_size to {values}, or change ppo.minibatches or the number of ranks",
    )
