"""DeepSpeed's own JSON files: reading, checking, and filling what they leave to the YAML.

DeepSpeed accepts misspelt top-level keys, `"auto"` where it cannot resolve it, and numbers written as strings, and
fails (or does something else) minutes later; so every key is typed here and checked before any model exists.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from destruct.config.base import Section, SectionT, validate
from destruct.config.offload import Offload, of_deepspeed
from destruct.config.reading import read_text
from destruct.errors import DestructError

Auto = Literal["auto"]
LearningRate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


class Bf16(Section):
    """bfloat16 parameters with float32 master weights."""

    enabled: bool = False
    """False: parameters in float32."""


class ZeroOptimization(Section):
    """DeepSpeed's `zero_optimization` block; a key that is null when left out keeps DeepSpeed's own default."""

    stage: int = Field(3, ge=0, le=3)
    """What the ranks share out: nothing, optimizer state (1), gradients too (2), parameters too (3)."""
    offload_param: Offload | None = None
    """Resting place of the parameters (stage 3)."""
    offload_optimizer: Offload | None = None
    """Resting place of the optimizer's state."""
    overlap_comm: bool | None = None
    """Reduce gradients while the backward pass goes on."""
    contiguous_gradients: bool | None = None
    """Copy gradients into one buffer as they are made, against fragmentation."""
    reduce_scatter: bool | None = None
    """Reduce-scatter instead of all-reduce for the gradients."""
    round_robin_gradients: bool | None = None
    """Spread the copies of offloaded gradients over the ranks (stages 1 and 2)."""
    reduce_bucket_size: int = Field(50_000_000, gt=0)
    """Elements reduced at once, in a buffer of each training engine (float32 at stage 3: 0.2 GiB). DeepSpeed's own
    default, 5e8, takes 1.9 GiB each, and up to as much again while it is sent."""
    allgather_bucket_size: int | None = Field(None, gt=0)
    """Elements gathered at once (stages 1 and 2)."""
    sub_group_size: int | None = Field(None, gt=0)
    """Elements that the optimizer steps at once (stage 3)."""
    stage3_prefetch_bucket_size: int | None = Field(None, ge=0)
    """Elements fetched ahead of their use."""
    stage3_param_persistence_threshold: int | None = Field(None, ge=0)
    """Parameters of up to this many elements stay gathered; 0 and nothing else for the frozen engine."""
    stage3_max_live_parameters: int | None = Field(None, ge=0)
    """Elements that may be gathered at a time."""
    stage3_max_reuse_distance: int | None = Field(None, ge=0)
    """A parameter used again within this many elements is kept."""
    memory_efficient_linear: bool = False
    """True lets DeepSpeed replace `torch.nn.functional.linear` for the whole process."""

    @model_validator(mode="after")
    def _offload_is_heeded(self) -> Self:
        for name, lowest in (("offload_param", 3), ("offload_optimizer", 1)):
            offload: Offload | None = getattr(self, name)
            if offload is not None and offload.device != "none" and self.stage < lowest:
                raise ValueError(
                    f"{name} does nothing at stage {self.stage}; take stage {lowest} or more, or leave it out"
                )
            if offload is not None and offload.device == "nvme" and self.stage < 3:
                raise ValueError(f'{name}: stage {self.stage} has no files; take stage 3, or device "cpu"')
        return self


class OptimizerParams(Section):
    """Arguments of Adam."""

    lr: LearningRate | Auto = "auto"
    """`auto`: `ppo.policy_lr` and `ppo.value_lr` of the YAML."""
    # Without strict=False the list of a JSON file is no tuple; the numbers in it stay strict.
    betas: tuple[Share, Share] = Field((0.9, 0.999), strict=False)
    """Decay of the running mean and of the running square of the gradient."""
    eps: float = Field(1e-5, gt=0)
    """Added to the root of the running square."""
    weight_decay: float = Field(0.0, ge=0)
    """Share of a weight taken off per unit of learning rate, apart from the gradient."""
    torch_adam: bool = True
    """True: PyTorch's fused Adam, which needs no compiler; False: DeepSpeed's own."""


class Optimizer(Section):
    """DeepSpeed's `optimizer` block."""

    type: Literal["AdamW", "Adam"] = "AdamW"
    """Both names decouple the weight decay."""
    params: OptimizerParams = OptimizerParams()


class SchedulerParams(Section):
    """Arguments of the learning rate schedules; `auto` is filled from the run's plan."""

    warmup_min_lr: float | None = Field(None, ge=0)
    """Learning rate of the first step; 0 by default."""
    warmup_max_lr: LearningRate | Auto | None = None
    """Learning rate that ends the warm-up; by default, and for `auto`, that of the YAML."""
    warmup_num_steps: int = Field(1000, ge=1)
    """Optimizer steps of the warm-up."""
    warmup_type: Literal["linear", "log"] | None = None
    """Shape of the warm-up; `log` by default."""
    warmup_min_ratio: float | None = Field(None, ge=0, le=1)
    """`WarmupCosineLR`: learning rate of the first step as a share of the peak; 0 by default."""
    cos_min_ratio: float | None = Field(None, ge=0, le=1)
    """`WarmupCosineLR`: learning rate of the last step as a share of the peak; 0.0001 by default."""
    total_num_steps: Annotated[int, Field(ge=1)] | Auto | None = None
    """Optimizer steps until the end of the decay; by default, and for `auto`, those that the run plans."""


class Scheduler(Section):
    """DeepSpeed's `scheduler` block."""

    type: Literal["WarmupLR", "WarmupDecayLR", "WarmupCosineLR"]
    """Constant, linear to 0, or along a cosine after the warm-up."""
    params: SchedulerParams = SchedulerParams()

    @model_validator(mode="after")
    def _every_parameter_is_read(self) -> Self:
        unread = sorted(self.params.model_fields_set - SCHEDULER_PARAMS[self.type])
        if unread:
            raise ValueError(f"{self.type} does not read params.{unread[0]}; leave it out, or choose another type")
        return self


class DataTypes(Section):
    """Gradients are always accumulated in float32."""

    grad_accum_dtype: Literal["fp32"]
    """In bfloat16 the gradient would depend on how a minibatch is split."""


class TrainingJSON(Section):
    """The DeepSpeed JSON of a training engine."""

    train_batch_size: Annotated[int, Field(ge=1)] | Auto = "auto"
    """Rollouts of one optimizer step; `auto`: `rollout.batch_size / ppo.minibatches`."""
    train_micro_batch_size_per_gpu: Annotated[int, Field(ge=1)] | Auto = "auto"
    """Rollouts of a micro-batch on average; `auto`: train_batch_size / (accumulation x ranks)."""
    gradient_accumulation_steps: int = Field(ge=1)
    """Micro-batches of a rank in one optimizer step; a number, never `auto`."""
    bf16: Bf16 = Bf16()
    zero_optimization: ZeroOptimization
    optimizer: Optimizer
    scheduler: Scheduler | None = None
    """Left out: the learning rates stay what they are."""
    gradient_clipping: Annotated[float, Field(ge=0)] | Auto = "auto"
    """`auto`: `ppo.max_grad_norm` of the YAML."""
    data_types: DataTypes
    communication_data_type: Literal["fp32"]
    """Gradients are reduced over the ranks in float32."""
    steps_per_print: int | None = Field(None, ge=1)
    """Steps between DeepSpeed's own log lines."""
    wall_clock_breakdown: bool = False
    """DeepSpeed's own timers, each of which waits for the device."""
    zero_allow_untested_optimizer: bool | None = None
    """Lets optimizers through that DeepSpeed does not know."""
    zero_force_ds_cpu_optimizer: bool | None = None
    """True, DeepSpeed's default: an offloaded optimizer must be DeepSpeed's own."""

    @model_validator(mode="after")
    def _the_optimizer_in_files_is_torchs(self) -> Self:
        offload = self.zero_optimization.offload_optimizer
        if offload is not None and offload.device == "nvme" and not self.optimizer.params.torch_adam:
            raise ValueError(
                "optimizer.params.torch_adam = false with offload_optimizer.device = nvme: DeepSpeed's own Adam keeps "
                'its state in memory; write true, or device "cpu"'
            )
        return self

    @model_validator(mode="after")
    def _float32_gradients_exist(self) -> Self:
        if self.bf16.enabled and self.zero_optimization.stage == 0:
            raise ValueError(
                "bf16.enabled = true with zero_optimization.stage = 0: DeepSpeed has no float32 gradients there; "
                "take stage 1, 2 or 3, or bf16.enabled = false"
            )
        return self


class FrozenZero(ZeroOptimization):
    """ZeRO-3 whose small parameters are dropped after each forward."""

    stage: int = Field(3, ge=3, le=3)
    """The frozen model is always sharded in full."""
    stage3_param_persistence_threshold: int
    """0: what stays gathered after a forward would not see the next refresh."""

    @field_validator("stage3_param_persistence_threshold")
    @classmethod
    def _nothing_persists(cls, threshold: int) -> int:
        if threshold:
            raise ValueError(f"is {threshold}: what stays gathered silently misses each refresh; set it to 0")
        return threshold


class FrozenJSON(Section):
    """The DeepSpeed JSON of the frozen engine: inference only, so it has no optimizer."""

    train_micro_batch_size_per_gpu: int = Field(1, ge=1)
    """DeepSpeed asks for it; nothing depends on it."""
    bf16: Bf16 | Auto = "auto"
    """`auto`: as in the JSON of the training engines."""
    zero_optimization: FrozenZero
    steps_per_print: int | None = Field(None, ge=1)
    """Steps between DeepSpeed's own log lines."""
    wall_clock_breakdown: bool = False
    """DeepSpeed's own timers, each of which waits for the device."""


def read_json(path: Path, section: type[SectionT]) -> SectionT:
    """Read and validate a DeepSpeed JSON; numbers must be numbers (`"1e-3"` is refused, as DeepSpeed should).

    Raises:
        DestructError: naming the file, the key and the nearest known key.
    """
    text, example = read_text(path), EXAMPLES[section]
    try:
        values = json.loads(text, parse_float=_number, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        reason = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise DestructError(f"{path}{line} is not JSON: {reason}", "fix the file") from None
    if not isinstance(values, dict):
        raise DestructError(f"{path} is not a JSON object", f"start from {example}")
    fp16 = values.pop("fp16", None)  # a block that only says it is off is common, and harmless
    if fp16 is not None and not (isinstance(fp16, dict) and fp16.get("enabled", False) is False):
        raise DestructError(f"{path}: fp16 is not supported", 'leave fp16 out; use "bf16": {"enabled": true}')
    return validate(section, values, str(path), example=example)


def _number(text: str) -> int | float:
    """People write bucket sizes as 5e8, which is a count all the same."""
    value = float(text)
    return int(value) if value.is_integer() else value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"the key {key!r} appears twice in one object")
        values[key] = value
    return values


def training_json(
    json: TrainingJSON, micro_batch: int, world_size: int, lr: float, max_grad_norm: float
) -> dict[str, Any]:
    """The dictionary for `deepspeed.initialize`, every "auto" filled.

    The scheduler is left out: the learning rate is given to each step (destruct/engine/schedule.py).
    """
    filled = json.model_dump(exclude_none=True, exclude={"scheduler"})
    filled["train_micro_batch_size_per_gpu"] = micro_batch
    filled["train_batch_size"] = micro_batch * json.gradient_accumulation_steps * world_size
    filled["gradient_clipping"] = max_grad_norm
    filled["optimizer"]["params"]["lr"] = lr
    if json.optimizer.params.torch_adam:
        filled["optimizer"]["params"]["fused"] = True
    return filled | {"zero_optimization": of_deepspeed(filled["zero_optimization"])}


def frozen_json(json: FrozenJSON, training: TrainingJSON) -> dict[str, Any]:
    """The dictionary for the inference engine; "auto" bf16 follows the policy's file."""
    filled = json.model_dump(exclude_none=True)
    if json.bf16 == "auto":
        filled["bf16"] = training.bf16.model_dump()
    return filled | {"zero_optimization": of_deepspeed(filled["zero_optimization"])}


_WARMUP = {"warmup_min_lr", "warmup_max_lr", "warmup_num_steps", "warmup_type"}

SCHEDULER_PARAMS = {
    "WarmupLR": _WARMUP,
    "WarmupDecayLR": _WARMUP | {"total_num_steps"},
    "WarmupCosineLR": {"warmup_min_ratio", "warmup_num_steps", "warmup_type", "cos_min_ratio", "total_num_steps"},
}
"""Scheduler -> the parameters that it reads, as in the signatures of deepspeed/runtime/lr_schedules.py."""

EXAMPLES: dict[type[Section], str] = {
    TrainingJSON: "ds_configs/zero3.json",
    FrozenJSON: "ds_configs/frozen_cpu_offload.json",
}
"""A complete file of each kind, for remedies."""
