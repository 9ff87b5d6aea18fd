"""The plan of one job: as tables for people, and as JSON."""

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from destruct.planning.collectives import Collective, plan_collectives
from destruct.planning.disk import Disk, plan_disk
from destruct.planning.duration import Phase, assumptions, plan_duration
from destruct.planning.fitting import Room, nearest, rooms
from destruct.planning.hardware import GIB
from destruct.planning.job import Job
from destruct.planning.memory import plan_memory
from destruct.planning.parts import ALWAYS, Memory, Place

WORDS = {
    "zero0": "ZeRO 0: nothing in shards",
    "zero1": "ZeRO 1: the optimizer's state in shards",
    "zero2": "ZeRO 2: optimizer and gradients in shards",
    "zero3": "ZeRO 3: weights, gradients and optimizer in shards",
    "fsdp": "FSDP: weights, gradients and optimizer in shards",
    "single": "one process",
}
PIPED = 120
"""Characters of a line where output is piped."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is known of a job before it starts."""

    job: Job
    memory: Memory
    rooms: list[Room]
    collectives: list[Collective]
    phases: list[Phase]
    disk: Disk

    @property
    def seconds(self) -> float:
        """Of an update."""
        return sum(phase.seconds for phase in self.phases)

    @property
    def tokens_per_second(self) -> float:
        """Tokens of rollouts, prompts included, that all ranks train on."""
        return self.job.settings.config.rollout.batch_size * self.job.window / self.seconds

    @property
    def fits(self) -> bool:
        """Whether every kind of memory is enough."""
        return all(room.fits for room in self.rooms)

    @property
    def files(self) -> int:
        """Bytes that a machine's ranks keep in files."""
        return self.memory.resident("files") * min(self.job.world, self.job.per_node)

    @property
    def longest(self) -> Phase:
        """The phase that takes most of the time."""
        return max(self.phases, key=lambda phase: phase.seconds)


def plan(job: Job) -> Plan:
    """Work everything out."""
    phases = plan_duration(job)
    disk = plan_disk(job, sum(phase.seconds for phase in phases))
    return Plan(job, plan_memory(job), rooms(job), plan_collectives(job), phases, disk)


def as_json(plan: Plan) -> dict[str, Any]:
    """Bytes, seconds and counts; memory is one rank's but for what is asked of a host, which is a machine's."""
    job, settings = plan.job, plan.job.settings
    return {
        "hardware": job.hardware.title,
        "world_size": job.world,
        "nodes": job.nodes,
        "way": job.way,
        "parameters": {"policy": job.policy.parameters, "value": job.value.parameters},
        "batch": {
            "rollouts": settings.config.rollout.batch_size,
            "minibatches": settings.config.ppo.minibatches,
            "gradient_accumulation_steps": job.accumulation,
            "micro_batch": settings.micro_batch,
            "optimizer_steps_per_update": job.steps,
        },
        "fits": plan.fits,
        "remedy": None if plan.fits else nearest(job),
        "memory": [
            {**asdict(room), "fits": room.fits, "moments_of_a_rank": plan.memory.moments(room.place)}
            for room in plan.rooms
        ],
        "files": {"rank": plan.memory.resident("files"), "machine": plan.files},
        "parts": [asdict(part) for part in plan.memory.parts],
        "collectives": [{**asdict(call), "sent": call.sent(job.world)} for call in plan.collectives],
        "phases": [{**asdict(phase), "seconds": phase.seconds, "bound": phase.bound} for phase in plan.phases],
        "seconds_per_update": plan.seconds,
        "tokens_per_second": plan.tokens_per_second,
        "disk": asdict(plan.disk),
        "assumptions": assumptions(job),
    }


def show(plan: Plan) -> None:
    """Print the tables."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PIPED)
    job, settings = plan.job, plan.job.settings
    machines = f"{job.nodes} machine" + ("s" if job.nodes > 1 else "")
    console.print(f"{job.world} x {job.hardware.title} on {machines}; {WORDS[job.way]}; {_dtype(job)}")
    sizes = f"policy {job.policy.parameters / 1e6:,.1f} million parameters, value {job.value.parameters / 1e6:,.1f}"
    console.print(sizes, soft_wrap=True)
    console.print(
        f"{settings.config.rollout.batch_size} rollouts of up to {job.window} tokens an update = "
        f"{settings.config.ppo.minibatches} minibatches x {job.accumulation} accumulated x {job.world} ranks x "
        f"{settings.micro_batch} a micro-batch; {settings.config.ppo.epochs} epoch(s), {job.steps} optimizer steps",
        soft_wrap=True,
    )
    console.print("\nmemory of a rank at its fullest moment, GiB")
    console.print(_memory(plan))
    for room in plan.rooms:
        console.print(_verdict(room), soft_wrap=True)
    if plan.files:
        console.print(f"files of a machine: {_size(plan.files)} at nvme_path", soft_wrap=True)
    if plan.collectives:
        console.print("\ncollectives of an update, GiB")
        console.print(_collectives(plan))
    console.print("\nseconds of an update")
    console.print(_phases(plan))
    console.print(
        f"{plan.seconds:.3g} s an update, {plan.tokens_per_second:,.0f} tokens a second; most of it is "
        f"{plan.longest.name}, bound by {plan.longest.bound}",
        soft_wrap=True,
    )
    disk = plan.disk
    console.print(
        f"a checkpoint takes {_size(disk.checkpoint)} on the disk, those kept and one being written "
        f"{_size(disk.kept)}; "
        + ("they are written" if disk.per_day is None else f"{_size(disk.per_day)} are written a day,")
        + " at the ends of epochs, every run.checkpoint_every updates, and for the best one",
        soft_wrap=True,
    )
    for line in assumptions(job):
        console.print(f"assumed: {line}", soft_wrap=True)


def _dtype(job: Job) -> str:
    return "bfloat16 products" if job.itemsize == 2 else "float32"


def _size(size: float) -> str:
    return f"{size / GIB:,.2f} GiB"


def _verdict(room: Room) -> str:
    left = room.given - room.asked
    words = f"{_size(left)} left" if left >= 0 else f"{_size(-left)} too much"
    whose = "of a machine" if room.place == "host" else "of a rank"
    return f"{room.place} {whose}: {_size(room.asked)} of {_size(room.given)} in '{room.moment}', {words}"


def _memory(plan: Plan) -> Table:
    """What is there all the time and at the fullest moment, largest first."""
    shown: dict[Place, str] = {room.place: room.moment for room in plan.rooms}
    if plan.files:
        shown["files"] = ALWAYS
    table = Table(box=None, pad_edge=False)
    for name, justify in (("network", "left"), ("what", "left"), *((place, "right") for place in shown)):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    sums: dict[tuple[str, str], dict[str, int]] = {}
    for place, moment in shown.items():
        for part in plan.memory.at(place, moment):
            row = sums.setdefault((part.network, part.what), {})
            row[place] = row.get(place, 0) + part.bytes
    for (network, what), row in sorted(sums.items(), key=lambda item: -sum(item[1].values())):
        table.add_row(network, what, *(f"{row[place] / GIB:.2f}" if place in row else "" for place in shown))
    return table


def _collectives(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("phase", "network", "what", "kind"):
        table.add_column(name)
    table.add_column("whole tensors", justify="right")
    table.add_column("sent by a rank", justify="right")
    for call in plan.collectives:
        figures = (f"{size / GIB:.2f}" for size in (call.bytes, call.sent(plan.job.world)))
        table.add_row(call.phase, call.network, call.what, call.kind, *figures)
    return table


def _phases(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("phase")
    for name in ("arithmetic", "memory", "launches", "collectives", "seconds"):
        table.add_column(name, justify="right")
    for phase in plan.phases:
        figures = (phase.arithmetic, phase.memory, phase.launches, phase.collectives, phase.seconds)
        table.add_row(phase.name, *(f"{figure:.3g}" for figure in figures))
    return table
