"""Comparing what checkpoints hold."""

import torch


def differences(a: object, b: object, path: str = "") -> list[str]:
    """Where two nested structures of tensors and numbers are not equal, bit for bit."""
    if type(a) is not type(b):
        return [f"{path}: {type(a).__name__} against {type(b).__name__}"]
    if isinstance(a, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [path]
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return [f"{path}: keys {set(a) ^ set(b)}"]
        return [fault for key in a for fault in differences(a[key], b[key], f"{path}.{key}")]
    if isinstance(a, list | tuple):
        if len(a) != len(b):
            return [f"{path}: length"]
        return [f for i, (x, y) in enumerate(zip(a, b, strict=True)) for f in differences(x, y, f"{path}[{i}]")]
    if hasattr(a, "__dict__") and type(a).__module__.startswith("deepspeed"):
        return differences(vars(a), vars(b), path)
    return [] if a == b or a != a else [f"{path}: {a} against {b}"]
