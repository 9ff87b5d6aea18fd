"""What checkpoints take on the disk."""

from dataclasses import dataclass

from destruct.planning.job import Job
from destruct.planning.memory import copies


@dataclass(frozen=True, slots=True)
class Disk:
    """Bytes."""

    checkpoint: int
    kept: int  # the newest ones, the best, and the one that is being written
    per_day: float | None  # written at the planned speed; None where the epochs' length depends on the data


def plan_disk(job: Job, seconds_per_update: float) -> Disk:
    """Masters and both moments in float32, and below ZeRO 3 the weights; copies of the policy as it is multiplied."""
    b, run = job.itemsize, job.settings.config.run
    per_element = 12 + b if job.way in ("zero1", "zero2") else 12
    trained = per_element * (job.policy.parameters + job.value.parameters)
    others = sum(b * net.parameters for name, net in copies(job).items() if name != "reward model")
    checkpoint = trained + others
    every, epoch = run.checkpoint_every, run.updates_per_epoch
    an_update = 1 / every if every else 0.0
    if epoch and not (every and epoch % every == 0):  # an epoch's end is a checkpoint of its own
        an_update += 1 / epoch
    a_day = 86400 / seconds_per_update * an_update * checkpoint if every or epoch else None
    return Disk(checkpoint, checkpoint * (run.keep_checkpoints + 2), a_day)
