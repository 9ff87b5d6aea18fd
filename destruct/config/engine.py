"""What runs the networks."""

from typing import Literal

from pydantic import Field

from destruct.config.base import Section


class EngineConfig(Section):
    """What runs the networks.  Accumulation, bf16, clipping, optimizer and scheduler are set in the DeepSpeed JSON."""

    backend: Literal["deepspeed", "fsdp", "single"] = "deepspeed"
    """`deepspeed` (ZeRO 0 to 3, by the JSON); `fsdp`: PyTorch's FSDP2, which shards what ZeRO-3 does and reads the same
    JSON; or `single`: plain torch in one process.  The latter two keep float32 master weights."""
    deepspeed: str = Field("ds_configs/zero3.json", min_length=1)
    """DeepSpeed JSON of the two training engines, whatever the backend; looked up from the working folder, then from
    the folder of this YAML file, then from the one above."""
    frozen: str = Field("ds_configs/frozen_cpu_offload.json", min_length=1)
    """DeepSpeed JSON of the frozen, inference-only engine; looked up likewise."""
    loss: Literal["auto", "triton", "chunked", "reference"] = "auto"
    """Implementation of the fused loss: `triton` for GPUs, `chunked` in plain torch for any device, neither of which
    ever holds full logits; `reference` is the plain definition.  `auto`: triton on data-centre GPUs of NVIDIA
    (A100 and later) where it is installed, else chunked."""
    loss_chunk_mib: int | None = Field(None, ge=1)
    """MiB that the logits of the fused loss take at a time (for triton with their gradient, never with the reference's
    of an exact KL); the last digits of the gradient depend on it.  null: 64 for chunked, 1024 for triton."""
