"""Whether a job fits its devices, and the nearest setting that does."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from destruct.config.deepspeed import ZeroOptimization
from destruct.config.offload import Offload
from destruct.errors import DestructError
from destruct.planning.hardware import GIB
from destruct.planning.job import Job
from destruct.planning.memory import FIRST_RANKS, plan_memory
from destruct.planning.parts import Place

SMALL_BUCKET = ZeroOptimization().reduce_bucket_size
MOST = 1024
"""Devices that are tried."""

Changed = tuple[str, Job]
"""What to set, and the job with it."""


@dataclass(frozen=True, slots=True)
class Room:
    """One kind of memory, in bytes: a rank's device, or the host of a machine with all its ranks."""

    place: Place
    asked: int
    given: float
    moment: str  # the fullest

    @property
    def fits(self) -> bool:
        """Whether it is enough."""
        return self.asked <= self.given


def rooms(job: Job) -> list[Room]:
    """The device, where there is one, and the host of the first rank's machine."""
    memory, hardware = plan_memory(job), job.hardware
    found = []
    if not hardware.is_cpu:
        moment, asked = memory.peak("device")
        found.append(Room("device", asked, max(0.0, hardware.memory - hardware.reserved), moment))
    ranks = min(job.world, job.per_node)
    machine: dict[str, int] = {}
    for moment, size in memory.moments("host").items():
        once = sum(part.bytes for part in memory.at("host", moment) if part.what == FIRST_RANKS)
        machine[moment] = ranks * (size - once) + once
    moment = max(machine, key=lambda name: machine[name])
    found.append(Room("host", machine[moment], job.host_memory, moment))
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
            whose = "a machine's host" if room.place == "host" else job.hardware.title
            raise DestructError(
                f"this run takes {room.asked / GIB:.2f} GiB of {room.place} memory in '{room.moment}', "
                f"{(room.asked - room.given) / GIB:.2f} more than the {room.given / GIB:.2f} of {whose}",
                nearest(job),
            )


def nearest(job: Job) -> str:
    """What to set so that the job fits: one change, else several together, else more devices."""
    for make in (*CHANGES, _in_files, _nothing_offloaded):
        for words, changed in make(job):
            if fits(changed):
                return words
    said: list[str] = []
    together = job
    for make in CHANGES:
        for words, changed in make(together)[-1:]:
            said, together = [*said, words], changed
            if fits(together):
                return "; ".join(said)
    for words, changed in _in_files(together):
        if fits(changed):
            return "; ".join([*(other for other in said if not other.startswith("offload")), words])
    if job.way == "single":
        return "set engine.backend: deepspeed, or fsdp, and plan for more devices, or take a smaller model"
    for devices in _more(job):
        for changed, besides in ((job, ""), (together, f"; {'; '.join(said)}" if said else "")):
            larger = _on(changed, devices)
            if fits(larger):
                batch = larger.settings.config.rollout.batch_size
                grown = f" with rollout.batch_size: {batch}" if batch != job.settings.config.rollout.batch_size else ""
                return f"take {devices} devices{grown}{besides}"
    return f"no setting fits, not even on {MOST} devices: take a smaller model, or shorter windows"


def _checkpointing(job: Job) -> list[Changed]:
    if job.settings.config.model.activation_checkpointing:
        return []
    return [("set model.activation_checkpointing: true", _yaml(job, "model", activation_checkpointing=True))]


def _smaller_micro_batches(job: Job) -> list[Changed]:
    """Ever more accumulation, as far as the batch divides; not where the JSON has sizes of its own."""
    settings = job.settings
    if (settings.training.train_micro_batch_size_per_gpu, settings.training.train_batch_size) != ("auto", "auto"):
        return []
    found = []
    for micro in range(settings.micro_batch - 1, 0, -1):
        if settings.micro_batch % micro == 0:
            accumulation = job.accumulation * settings.micro_batch // micro
            training = settings.training.model_copy(update={"gradient_accumulation_steps": accumulation})
            words = f"set gradient_accumulation_steps to {accumulation} in {settings.config.engine.deepspeed}"
            found.append((words, replace(job, settings=replace(settings, training=training, micro_batch=micro))))
    return found


def _small_bucket(job: Job) -> list[Changed]:
    if job.way not in ("zero2", "zero3") or job.settings.training.zero_optimization.reduce_bucket_size <= SMALL_BUCKET:
        return []
    words = f"set zero_optimization.reduce_bucket_size to {SMALL_BUCKET} in {job.settings.config.engine.deepspeed}"
    return [(words, _zero(job, reduce_bucket_size=SMALL_BUCKET))]


def _stage_3(job: Job) -> list[Changed]:
    if job.way not in ("zero0", "zero1", "zero2"):
        return []
    return [("set zero_optimization.stage to 3, as ds_configs/zero3.json does", _zero(job, stage=3))]


def _offload_optimizer(job: Job) -> list[Changed]:
    if not job.way.startswith("zero") or job.hardware.is_cpu or job.offload("offload_optimizer"):
        return []
    changed = _zero(job, stage=3, offload_optimizer=Offload(device="cpu", pin_memory=True))
    return [("offload the optimizer as ds_configs/zero3_offload.json does", changed)]


def _offload_all(job: Job) -> list[Changed]:
    if not job.way.startswith("zero") or job.hardware.is_cpu or job.offload("offload_param"):
        return []
    host = Offload(device="cpu", pin_memory=True)
    changed = _zero(job, stage=3, offload_optimizer=host, offload_param=host)
    return [("offload weights and optimizer as ds_configs/zero3_offload_all.json does", changed)]


def _in_files(job: Job) -> list[Changed]:
    places = {job.place(job.offload(name)) for name in ("offload_param", "offload_optimizer")}
    if not job.way.startswith("zero") or places == {"files"}:
        return []
    files = Offload(device="nvme", nvme_path="$NVME_PATH")
    changed = _zero(job, stage=3, offload_optimizer=files, offload_param=files)
    return [("keep weights and optimizer in files as ds_configs/zero3_nvme.json does", changed)]


def _layers(job: Job) -> list[Changed]:
    if job.way == "single" or job.settings.config.rollout.gather == "layers":
        return []
    return [("set rollout.gather: layers", _yaml(job, "rollout", gather="layers"))]


def _nothing_offloaded(job: Job) -> list[Changed]:
    """For hosts that are too small."""
    if not (job.offload("offload_optimizer") or job.offload("offload_param")):
        return []
    words = f"leave offload_optimizer and offload_param out of {job.settings.config.engine.deepspeed}"
    return [(words, _zero(job, offload_optimizer=None, offload_param=None))]


CHANGES = (
    _checkpointing,
    _smaller_micro_batches,
    _small_bucket,
    _stage_3,
    _offload_optimizer,
    _offload_all,
    _layers,
)
"""From what costs little time to what costs much; each gives what it could set, the smallest change first."""


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
    while devices <= max(MOST, 2 * job.world):
        yield devices
        devices *= 2


def _on(job: Job, devices: int) -> Job:
    """The same run on other devices, with the next larger batch that they divide."""
    per_pass = job.accumulation * devices * job.settings.config.ppo.minibatches
    micro = -(-job.settings.config.rollout.batch_size // per_pass)
    grown = _yaml(job, "rollout", batch_size=micro * per_pass)
    return replace(grown, settings=replace(grown.settings, world_size=devices, micro_batch=micro))
