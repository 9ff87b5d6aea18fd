"""What no implementation of the fused ops can take, refused by a ValueError that names the argument and both values."""

import torch
from torch import Tensor

from destruct.ops.rows import EXACT_KL_NAMES, LossCoefficients, LossRows, ReferenceStates

_MATRIX_DTYPES = (torch.bfloat16, torch.float32, torch.float64)


def check_product(hidden: Tensor, weight: Tensor, prefix: str = "") -> None:
    """Refuse hidden states (..., H) and a weight (V, H) that do not multiply.

    Args:
        prefix: of both names in the message.
    """
    first, second = f"{prefix}hidden", f"{prefix}weight"
    if weight.dim() != 2 or hidden.dim() < 1 or hidden.shape[-1] != weight.shape[-1]:
        raise ValueError(
            f"{first} is {tuple(hidden.shape)}, {second} is {tuple(weight.shape)}; expected (..., H) and (V, H)"
        )
    if hidden.dtype != weight.dtype:
        raise ValueError(f"{first} is {hidden.dtype}, {second} is {weight.dtype}; expected one dtype")
    if hidden.device != weight.device:
        raise ValueError(f"{first} is on {hidden.device}, {second} is on {weight.device}; expected one device")


def check_inputs(hidden: Tensor, weight: Tensor, targets: Tensor) -> None:
    """Refuse hidden states, a head and targets that do not fit together.

    Args:
        hidden: (N, H) bfloat16, float32 or float64.
        weight: (V, H) of the same dtype.
        targets: (N,) int64 in [0, V); the range is looked at on the CPU only, elsewhere that would wait for the device.

    Raises:
        ValueError: naming the argument and its values.
    """
    check_product(hidden, weight)
    if hidden.dim() != 2 or hidden.shape[0] != targets.shape[0]:
        raise ValueError(
            f"hidden is {tuple(hidden.shape)}; targets is {tuple(targets.shape)}, so expected ({len(targets)}, H)"
        )
    if hidden.dtype not in _MATRIX_DTYPES:
        # float16 would need the loss scale folded in before the logit gradients (about 1 / (N V)) are rounded to it.
        raise ValueError(f"hidden is {hidden.dtype}; expected one of {_MATRIX_DTYPES}")
    if targets.device != hidden.device:
        raise ValueError(f"targets is on {targets.device}; hidden is on {hidden.device}")
    if targets.device.type != "cpu" or targets.numel() == 0:
        return
    low, high = (int(bound) for bound in targets.aminmax())
    if low < 0 or high >= weight.shape[0]:
        raise ValueError(
            f"targets lie in [{low}, {high}]; weight has {weight.shape[0]} rows, so expected [0, {weight.shape[0]})"
        )


def check_reference(
    hidden: Tensor, weight: Tensor, rows: LossRows, coefficients: LossCoefficients, reference: ReferenceStates | None
) -> None:
    """Refuse a reference that is missing, not read, or does not fit hidden (N, H), weight (V, H) and N rows.

    Raises:
        ValueError: naming the argument and its values; that response rows lie beyond the reference's is seen on the CPU
            alone.
    """
    if reference is None and not coefficients.exact_kl:
        return
    if reference is None or not coefficients.exact_kl:
        given = "not given" if reference is None else "given"
        raise ValueError(f"reference is {given}, kl is {coefficients.kl!r}; only {EXACT_KL_NAMES} read it, and need it")
    check_product(reference.hidden, reference.weight, "reference.")
    count, vocab = reference.hidden.shape[0], reference.weight.shape[0]
    if reference.hidden.dim() != 2 or count > hidden.shape[0]:
        raise ValueError(f"reference.hidden is {tuple(reference.hidden.shape)}; hidden is {tuple(hidden.shape)}")
    if vocab != weight.shape[0]:
        raise ValueError(f"reference.weight is {tuple(reference.weight.shape)}; weight is {tuple(weight.shape)}")
    for name in ("dtype", "device"):
        theirs, ours = getattr(reference.hidden, name), getattr(hidden, name)
        if theirs != ours:
            raise ValueError(f"reference.hidden has {name} {theirs}; hidden has {ours}")
    if hidden.device.type == "cpu" and rows.policy_weight[count:].any():
        last = int(rows.response.nonzero().max())
        raise ValueError(f"reference.hidden has {count} rows; row {last} is a response row, and needs one")
