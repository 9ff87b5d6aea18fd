"""What `engine.backend: fsdp` takes from the DeepSpeed JSON files, and what it must refuse in them."""

from destruct.config.deepspeed import FrozenJSON, TrainingJSON, ZeroOptimization
from destruct.errors import DestructError

OF_DEEPSPEED_ALONE = (
    "reduce_bucket_size",
    "allgather_bucket_size",
    "sub_group_size",
    "stage3_prefetch_bucket_size",
    "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
    "memory_efficient_linear",
)
"""Keys of `zero_optimization` that FSDP has nothing of."""
ALWAYS = ("overlap_comm", "contiguous_gradients", "reduce_scatter")
"""Keys of `zero_optimization` that describe what FSDP always does."""


def check_fsdp(training: TrainingJSON, training_name: str, frozen: FrozenJSON, frozen_name: str) -> None:
    """Refuse keys that FSDP would not heed.  It shards what ZeRO-3 does, by the modules' layers.

    Args:
        training_name, frozen_name: paths of the files, for errors.

    Raises:
        DestructError: naming the file, the key and what to use.
    """
    zero = training.zero_optimization
    if zero.stage != 3:
        _refuse(
            training_name,
            f"zero_optimization.stage = {zero.stage}",
            "it always shards parameters, as 3 does",
            "write 3",
        )
    for name in ("offload_param", "offload_optimizer"):
        offload = getattr(zero, name)
        if offload is not None and offload.device != "none":
            key = f"zero_optimization.{name}.device = {offload.device}"
            _refuse(training_name, key, "the networks that train stay on their devices", f"leave {name} out")
    if zero.round_robin_gradients:
        _refuse(training_name, "zero_optimization.round_robin_gradients", "it has nothing of the kind", "leave it out")
    weights = frozen.zero_optimization.offload_param
    if weights is not None and weights.device == "nvme":
        key = "zero_optimization.offload_param.device = nvme"
        _refuse(frozen_name, key, "it has no files for shards", 'write "cpu"')
    resting = frozen.zero_optimization.offload_optimizer
    if resting is not None and resting.device != "none":
        key = f"zero_optimization.offload_optimizer.device = {resting.device}"
        _refuse(frozen_name, key, "a frozen model has no optimizer", "leave offload_optimizer out")
    if frozen.bf16 not in ("auto", training.bf16):
        _refuse(frozen_name, "bf16", "the frozen model has the dtype of the policy", 'write "auto"')
    for file, json in ((training_name, training), (frozen_name, frozen)):
        for name in json.changed("wall_clock_breakdown", "steps_per_print"):
            _refuse(file, name, "these are DeepSpeed's own log lines", f"leave {name} out")
    own = ["stage3_param_persistence_threshold", *OF_DEEPSPEED_ALONE]
    for file, section, names in (
        (training_name, zero, own),
        (frozen_name, frozen.zero_optimization, list(OF_DEEPSPEED_ALONE)),
    ):
        _check_zero(file, section, names)
    if not training.optimizer.params.torch_adam:
        _refuse(training_name, "optimizer.params.torch_adam = false", "it trains with PyTorch's Adam", "write true")


def _check_zero(file: str, zero: ZeroOptimization, names: list[str]) -> None:
    for name in zero.changed(*names):
        _refuse(file, f"zero_optimization.{name}", "it has nothing of the kind", f"leave {name} out")
    for name in ALWAYS:
        if getattr(zero, name) is False:
            _refuse(file, f"zero_optimization.{name} = false", "it always does that", f"leave {name} out")


def _refuse(file: str, key: str, reason: str, remedy: str) -> None:
    raise DestructError(
        f"{file}: engine.backend=fsdp cannot honour {key}: {reason}", f"{remedy}, or set engine.backend: deepspeed"
    )
