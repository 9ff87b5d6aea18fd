"""Peak memory of one step of the fused loss, by what the system and torch's allocator say.

On the CPU the kernel's own high-water mark is reset before the step and read after it: it misses nothing, whoever
allocates (oneDNN and compiled ops do so behind torch's back), and needs no polling.  It counts whole pages, of 2 MiB
where they are huge, and leaves out what was allocated and never written.  The allocator's record of the same step is
reported beside it.
"""

import gc
import re
from collections.abc import Callable
from pathlib import Path

import torch

from bench.fused_loss_case import Case

Step = Callable[[], object]


def memory_figures(case: Case, step: Step, chunk_rows: int) -> dict[str, int | None]:
    """Bytes of one step beyond what there was before it.

    Args:
        case: whose weight is made to ask for no gradient for one of the measurements.
        step: forward and backward, after which the gradients are in the case's leaves.
        chunk_rows: of the implementation.

    Returns:
        peak_rss_bytes: the whole rise, None on CUDA; allocator_peak_bytes: the same as torch's allocator counts it.
        hidden_gradient_bytes, weight_gradient_bytes: of the gradients while the peak lasts, the latter in float32 where
            several chunks add up to it (it is cast when the logits are gone): what a weight gradient adds to the peak,
            up to that size.
        extra_bytes: the peak less those two, that is all memory the loss itself needs.
    """
    device, dtype = case.hidden.device.type, case.hidden.dtype
    rise = _cuda_rise if device == "cuda" else _rss_rise
    _run(case, step)
    whole = rise(case, step)
    allocated = whole if device == "cuda" else _allocator_rise(case, step)
    case.weight.requires_grad_(False)
    _run(case, step)
    without_weight = rise(case, step)
    case.weight.requires_grad_(True)
    several = dtype == torch.bfloat16 and len(case.hidden) > chunk_rows
    at_most = case.weight.numel() * (4 if several else dtype.itemsize)
    hidden, weight = case.hidden.numel() * dtype.itemsize, max(0, min(whole - without_weight, at_most))
    return {
        "extra_bytes": whole - hidden - weight,
        "hidden_gradient_bytes": hidden,
        "weight_gradient_bytes": weight,
        "peak_rss_bytes": None if device == "cuda" else whole,
        "allocator_peak_bytes": allocated,
    }


def _run(case: Case, step: Step) -> None:
    """A step that leaves nothing behind but what it loaded and cached for good."""
    step()
    case.hidden.grad = case.weight.grad = None
    gc.collect()


def _rss_rise(case: Case, step: Step) -> int:
    before = _status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark becomes the present size
    step()
    peak = _status_bytes("VmHWM")
    case.hidden.grad = case.weight.grad = None
    return peak - before


def _status_bytes(name: str) -> int:
    match = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) * 1024


def _allocator_rise(case: Case, step: Step) -> int:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    case.hidden.grad = case.weight.grad = None
    return peak


def _cuda_rise(case: Case, step: Step) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    case.hidden.grad = case.weight.grad = None
    return peak - before
