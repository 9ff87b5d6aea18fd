"""Whether a job fits its devices, and the nearest setting that does."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from destruct.config.deepspeed import Offload, ZeroOptimization
from destruct.config.settings import micro_batch_size
from destruct.errors import DestructError
from destruct.planning.hardware import GIB
from destruct.planning.job import Job
from destruct.planning.memory import plan_memory
from destruct.planning.parts import Place

SMALL_BUCKET = ZeroOptimization().reduce_bucket_size
MOST_DEVICES = 1024


@dataclass(frozen=True, slots=True)
class Room:
    """One kind of memory: what is asked of it at the fullest moment, and what there is for a rank, in bytes."""

    place: Place
    asked: int
    given: float
    moment: str

    @property
    def fits(self) -> bool:
        """Whether it is enough."""
        return self.asked <= self.given


def rooms(job: Job) -> list[Room]:
    """Device (where there is one) and host, each for one rank."""
    memory, hardware = plan_memory(job), job.hardware
    found = []
    if not hardware.is_cpu:
        moment, asked = memory.peak("device")
        found.append(Room("device", asked, hardware.memory - hardware.reserved, moment))
    moment, asked = memory.peak("host")
    found.append(Room("host", asked, hardware.host_memory, moment))
    return found


def fits(job: Job) -> bool:
    """Whether every kind of memory is enough."""
    return all(room.fits for room in rooms(job))


def check_fits(job: Job) -> None:
    """Refuse a job that its devices cannot hold.

    Raises:
        DestructError: by how much, at which moment, and the nearest setting that fits.
    """
    for room in rooms(job):
        if not room.fits:
            what = f"a rank's share of {job.hardware.title}'s host" if room.place == "host" else job.hardware.title
            raise DestructError(
                f"this run takes {room.asked / GIB:.1f} GiB of {room.place} memory in '{room.moment}', "
                f"{(room.asked - room.given) / GIB:.1f} more than the {room.given / GIB:.1f} of {what}",
                nearest(job),
            )


def nearest(job: Job) -> str:
    """What to set so that the job fits: one change, else several together, else more devices."""
    changes = list(_changes(job))
    for words, changed in changes:
        if fits(changed):
            return words
    said: list[str] = []
    together = job
    for words, changed in _in_turn(job):
        said, together = [*said, words], changed
        if fits(together):
            return "; ".join(said)
    for devices in _more(job):
        for changed, words in ((job, ""), (together, f", with {'; '.join(said)}")):
            larger = _on(changed, devices)
            if larger is not None and fits(larger):
                return f"take {devices} devices{words}"
    return f"no setting of this run fits, not even on {MOST_DEVICES} devices: take a smaller model"


def _changes(job: Job) -> Iterator[tuple[str, Job]]:
    """Each change by itself, the cheapest first."""
    for make in CHANGES:
        found = make(job)
        if found is not None:
            yield found


def _in_turn(job: Job) -> Iterator[tuple[str, Job]]:
    """The changes one upon the other."""
    for make in CHANGES:
        found = make(job)
        if found is not None:
            yield found
            job = found[1]


def _checkpointing(job: Job) -> tuple[str, Job] | None:
    if job.settings.config.model.activation_checkpointing:
        return None
    return "set model.activation_checkpointing: true", _yaml(job, "model", activation_checkpointing=True)


def _smaller_micro_batches(job: Job) -> tuple[str, Job] | None:
    """The largest accumulation that the batch still divides by."""
    settings = job.settings
    for micro in range(1, settings.micro_batch):
        if settings.micro_batch % micro == 0:
            accumulation = job.accumulation * settings.micro_batch // micro
            training = settings.training.model_copy(update={"gradient_accumulation_steps": accumulation})
            words = f"set gradient_accumulation_steps to {accumulation} in {settings.config.engine.deepspeed}"
            return words, replace(job, settings=replace(settings, training=training, micro_batch=micro))
    return None


def _small_bucket(job: Job) -> tuple[str, Job] | None:
    bucket = job.settings.training.zero_optimization.reduce_bucket_size
    if job.way not in ("zero2", "zero3") or bucket <= SMALL_BUCKET:
        return None
    words = f"set zero_optimization.reduce_bucket_size to {SMALL_BUCKET} in {job.settings.config.engine.deepspeed}"
    return words, _zero(job, reduce_bucket_size=SMALL_BUCKET)


def _stage_3(job: Job) -> tuple[str, Job] | None:
    if job.way not in ("zero0", "zero1", "zero2"):
        return None
    words = "shard the weights too, as ds_configs/zero3.json does"
    return words, _zero(job, stage=3, reduce_bucket_size=SMALL_BUCKET)


def _offload_optimizer(job: Job) -> tuple[str, Job] | None:
    if not job.way.startswith("zero") or job.hardware.is_cpu or job.offload("offload_optimizer"):
        return None
    host = Offload(device="cpu", pin_memory=True)
    changed = _zero(job, stage=3, offload_optimizer=host, reduce_bucket_size=SMALL_BUCKET)
    return "offload the optimizer as ds_configs/zero3_offload.json does", changed


def _offload_all(job: Job) -> tuple[str, Job] | None:
    if not job.way.startswith("zero") or job.hardware.is_cpu or job.offload("offload_param"):
        return None
    host = Offload(device="cpu", pin_memory=True)
    changed = _zero(job, stage=3, offload_optimizer=host, offload_param=host, reduce_bucket_size=SMALL_BUCKET)
    return "offload weights and optimizer as ds_configs/zero3_offload_all.json does", changed


def _layers(job: Job) -> tuple[str, Job] | None:
    if job.way == "single" or job.settings.config.rollout.gather == "layers":
        return None
    return "set rollout.gather: layers", _yaml(job, "rollout", gather="layers")


CHANGES = (
    _checkpointing,
    _smaller_micro_batches,
    _small_bucket,
    _stage_3,
    _offload_optimizer,
    _offload_all,
    _layers,
)
"""From what costs little time to what costs much."""


def _yaml(job: Job, section: str, **values: Any) -> Job:
    config = job.settings.config
    changed = config.model_copy(update={section: getattr(config, section).model_copy(update=values)})
    return replace(job, settings=replace(job.settings, config=changed))


def _zero(job: Job, **values: Any) -> Job:
    training = job.settings.training
    zero = training.zero_optimization.model_copy(update=values)
    training = training.model_copy(update={"zero_optimization": zero})
    return replace(job, settings=replace(job.settings, training=training))


def _more(job: Job) -> Iterator[int]:
    devices = 2 * job.world
    while devices <= MOST_DEVICES and job.way != "single":
        yield devices
        devices *= 2


def _on(job: Job, devices: int) -> Job | None:
    """The same run on other devices; None where its batch does not divide by them."""
    settings = job.settings
    rollouts, minibatches = settings.config.rollout.batch_size, settings.config.ppo.minibatches
    try:
        micro = micro_batch_size(rollouts, job.accumulation, devices, minibatches, "")
    except DestructError:
        return None
    return replace(job, settings=replace(settings, world_size=devices, micro_batch=micro))
