"""Learning rate as a pure function of the step, so that resume needs the step alone and all backends agree.

The three shapes are DeepSpeed's, read from its JSON (deepspeed/runtime/lr_schedules.py, compared in the tests).
"""

import math
from dataclasses import dataclass

from destruct.config.deepspeed import Scheduler


@dataclass(frozen=True, slots=True)
class Schedule:
    """Learning rate of optimizer step 0, 1, 2, ...

    Step n is DeepSpeed's iteration n; its engine takes the first step at iteration -1, one later than here.

    Args:
        peak: the learning rate that ends the warm-up.
        scheduler: DeepSpeed's block, or None for a constant rate.
        total_steps: optimizer steps that the run plans; fills an "auto" total_num_steps.
    """

    peak: float
    scheduler: Scheduler | None
    total_steps: int

    def __call__(self, step: int) -> float:
        if self.scheduler is None:
            return self.peak
        p = self.scheduler.params
        warmup = max(p.warmup_num_steps, 2)
        total = p.total_num_steps if isinstance(p.total_num_steps, int) else self.total_steps
        if self.scheduler.type == "WarmupCosineLR":
            floor = p.cos_min_ratio if p.cos_min_ratio is not None else 0.0001
            if step < warmup:
                start = p.warmup_min_ratio or 0.0
                return self.peak * (start + (1 - start) * _ramp(step, warmup, p.warmup_type))
            progress = min(1.0, (step - warmup + 1) / max(1, total - warmup))
            return self.peak * (floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2)
        low = p.warmup_min_lr or 0.0
        high = p.warmup_max_lr if isinstance(p.warmup_max_lr, float) else self.peak
        factor = _ramp(step, warmup, p.warmup_type) if step < warmup else 1.0
        if self.scheduler.type == "WarmupDecayLR" and step >= warmup:
            factor = max(0.0, (total - step) / max(1.0, total - warmup))
        return low + (high - low) * factor


def _ramp(step: int, warmup: int, kind: str | None) -> float:
    if kind == "linear":
        return step / warmup
    return math.log(step + 1) / math.log(warmup)


def cosine_to_tenth(peak: float, step: int, total: int) -> float:
    """Cosine from `peak` at step 0 to a tenth of it at the last of `total` steps."""
    progress = step / max(1, total - 1)
    return peak * (0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2)
