"""When a run that hangs, drifts apart or diverges is ended."""

from pydantic import Field

from destruct.config.base import Section


class GuardConfig(Section):
    """When a run that hangs, drifts apart or diverges is ended, so that it can go on from its last checkpoint."""

    stall_s: float = Field(900.0, ge=0)
    """Seconds without a sign of life of a rank, after which every rank writes its stacks to its log, the late one is
    named and the run ends with 76; 0: never.  Longer than the longest write of a
    checkpoint; 0 under a debugger."""
    compare_every: int = Field(10, ge=0)
    """Updates between comparisons of what must be equal on all ranks, and of their speeds; 0: at the start and before
    each checkpoint alone."""
    skipped_updates: int = Field(3, ge=1)
    """Updates in a row with a step that was dropped, as something was not finite, after which the run is set back to
    its last checkpoint; in the warm-up: steps, and the run ends with 77."""
    restarts: int = Field(3, ge=0)
    """How often a run is set back; the next time it ends with 77."""
