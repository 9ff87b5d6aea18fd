"""The time of an update: arithmetic at a share of the peak, memory and collectives at their bandwidth."""

from dataclasses import dataclass, fields

from destruct.config.offload import Offload
from destruct.planning.collectives import TRIPS, Collective, plan_collectives
from destruct.planning.fitting import rooms
from destruct.planning.job import Job, round_forwards
from destruct.planning.memory import plan_memory
from destruct.planning.networks import Decoder

BUS_EFFICIENCY = 0.8
"""Share of the wires' bandwidth that large collectives are taken to reach."""
MEMORY_EFFICIENCY = 0.7
"""Share of the memory's bandwidth that decoding is taken to reach."""
HOST_BANDWIDTH = 40e9
"""Bytes a second between a device and its host, each way, and of Adam on the host."""

FILES_BANDWIDTH = 5e9
"""Bytes a second that a machine's disk reads and writes of what is offloaded to files."""

LAUNCH = 1e-3
"""Seconds that the host takes to launch the kernels of one layer's forward, some hundred; a backward takes two."""


@dataclass(frozen=True, slots=True)
class Phase:
    """Seconds of one phase of an update on the slowest rank, which are the largest of these."""

    name: str
    arithmetic: float
    memory: float
    launches: float
    collectives: float

    @property
    def seconds(self) -> float:
        """Of the whole phase."""
        return max(self.arithmetic, self.memory, self.launches, self.collectives)

    @property
    def bound(self) -> str:
        """What takes the time."""
        return max(("arithmetic", "memory", "launches", "collectives"), key=lambda name: getattr(self, name))


@dataclass(frozen=True, slots=True)
class Work:
    """Of one rank in a phase of an update."""

    flops: float
    read: float = 0.0  # bytes of the device's memory
    host: float = 0.0  # bytes between device and host, and of the host's own arithmetic
    files: float = 0.0  # bytes read from files and written to them
    layers: float = 0.0  # forwards of single layers that are launched; a backward counts two

    def __add__(self, other: "Work") -> "Work":
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def bus_bandwidth(job: Job) -> float:
    """Bytes a second that a ring moves through each rank: its link, or its machine's share of the network."""
    hardware = job.hardware
    across = min(hardware.link, hardware.network * job.per_node)
    return hardware.link if job.nodes == 1 else across


def collective_seconds(job: Job, call: Collective) -> float:
    """A ring: each call goes round the ranks once, or twice to reduce and to spread; its bytes take the bandwidth."""
    hops = (job.world - 1) * TRIPS[call.kind]
    return call.sent(job.world) / (bus_bandwidth(job) * BUS_EFFICIENCY) + call.calls * hops * job.hardware.hop


def plan_duration(job: Job) -> list[Phase]:
    """The phases of an update, validation and checkpoints left out."""
    waited: dict[str, float] = {}
    for call in plan_collectives(job):
        waited[call.phase] = waited.get(call.phase, 0.0) + collective_seconds(job, call)
    speed, share = job.hardware.peak_flops * job.hardware.efficiency, share_on_disk(job)
    memory_speed = job.hardware.memory_bandwidth * MEMORY_EFFICIENCY
    phases = []
    for name, done in work(job).items():
        disk = FILES_BANDWIDTH / min(job.world, job.per_node)
        memory = done.read / memory_speed + done.host / HOST_BANDWIDTH + share * done.files / disk
        launches = 0.0 if job.hardware.is_cpu else done.layers * LAUNCH
        phases.append(Phase(name, done.flops / speed, memory, launches, waited.get(name, 0.0)))
    return phases


def assumptions(job: Job) -> list[str]:
    """What the times stand on, and what the memory."""
    hardware = job.hardware
    lines = [
        f"products reach {hardware.efficiency:.0%} of {hardware.peak_flops / 1e12:,.3g} TFLOP/s, and activation "
        "checkpointing costs one more forward",
        f"a token is decoded in the time of reading all weights and the cache once, at {MEMORY_EFFICIENCY:.0%} of "
        f"{hardware.memory_bandwidth / 1e12:.3g} TB/s",
    ]
    if not hardware.is_cpu:
        lines += [
            f"the host launches the kernels of a layer's forward in {LAUNCH * 1e3:.0f} ms, which bounds decoding and "
            "small micro-batches",
            f"between a device and its host, and in Adam there, go {HOST_BANDWIDTH / 1e9:.0f} GB/s",
        ]
    if any(done.files for done in work(job).values()):
        lines.append(
            f"a machine's disk moves {FILES_BANDWIDTH / 1e9:.0f} GB/s, through which goes the "
            f"{share_on_disk(job):.0%} of the files that its memory has no room for"
        )
    if job.world > 1:
        lines.append(
            f"collectives are rings at {BUS_EFFICIENCY:.0%} of {bus_bandwidth(job) / 1e9:.3g} GB/s a rank and "
            f"{hardware.hop * 1e6:.0f} us from rank to rank; in each phase the longest of arithmetic, memory, launches "
            "and collectives hides the others",
        )
    lines.append(
        "every rollout runs to its last token, no epoch is stopped early, prompts fill their columns; shorter ones "
        "take less"
    )
    return lines


def work(job: Job) -> dict[str, Work]:
    """What one rank does in each phase."""
    m, again = job.micro_batches, 4 if job.settings.config.model.activation_checkpointing else 3
    policy, alone = forward_flops(job, job.policy, both=True), forward_flops(job, job.policy, both=False)
    value = forward_flops(job, job.value, both=False)
    reward = 0.0 if job.reward_model is None else forward_flops(job, job.reward_model, both=False)
    reward_layers = 0 if job.reward_model is None else job.reward_model.layers
    shared, stops, copies = job.shared_passes, job.early_stop_passes, job.reference_passes
    size = job.together  # micro-batches of a shared pass
    layers, both = job.policy.layers, job.policy.layers + job.value.layers
    shards = [job.itemsize * net.parameters / job.world for net in (job.policy, job.value)]
    weights, frozen = job.offload("offload_param"), job.frozen_offload
    passes = 2 * job.train_passes  # a backward fetches the weights anew
    rollout = job.settings.config.rollout
    layer_by_layer = rollout.gather == "layers" and rollout.mode == "generate"
    fills = rollout.response_tokens if layer_by_layer else 1
    scorer = 0.0 if job.reward_model is None else job.itemsize * job.reward_model.parameters / job.world
    return {
        "generate": generating(job) + fetching(job, weights, fills * shards[0]),
        "score": Work(
            m * (policy + value + reward) + copies * size * alone,
            layers=m * layers + shared * (job.value.layers + reward_layers) + copies * layers,
        )
        + fetching(job, weights, m * shards[0] + shared * shards[1])
        + fetching(job, frozen, copies * shards[0] + shared * scorer),
        "update": Work(
            job.train_passes * again * (policy + value) + stops * size * alone,
            layers=job.train_passes * again * both + stops * layers,
        )
        + stepping(job)
        + fetching(job, weights, passes * sum(shards) + stops * shards[0]),
        "kl": Work(m * alone, layers=shared * layers) + fetching(job, weights, shared * shards[0]),
        "round": Work(round_flops(job), layers=round_forwards(job) * layers)
        + fetching(job, frozen, round_forwards(job) * shards[0]),
    }


def forward_flops(job: Job, net: Decoder, both: bool) -> float:
    """Of one micro-batch.

    Args:
        both: with the data's own windows, which PTX trains on.
    """
    micro, response = job.settings.micro_batch, job.settings.config.rollout.response_tokens
    tokens = (job.policy_sequences if both else micro) * job.window
    rows = job.policy_rows if both else micro * response
    head = 0.0 if net.head == "scalar" else rows * net.head_flops
    return tokens * net.flops_per_token(job.window / 2) + head


def generating(job: Job) -> Work:
    """Sampling: for each token all weights and the cache so far are read, and all layers launched."""
    net, n, rollout = job.policy, job.rollouts_per_rank, job.settings.config.rollout
    tokens = n * job.window
    steps = rollout.response_tokens if rollout.mode == "generate" else 1
    flops = tokens * net.flops_per_token(job.window / 2) + n * rollout.response_tokens * net.head_flops
    cache = 2 * net.layers * net.kv_width * n * (job.window - rollout.response_tokens / 2)
    return Work(flops, steps * job.itemsize * (net.parameters + cache), layers=steps * net.layers)


def fetching(job: Job, offload: Offload | None, size: float) -> Work:
    """Of offloaded weights that come to the device.

    Args:
        size: bytes of a rank.
    """
    files = size if job.place(offload) == "files" else 0.0
    return Work(0.0, host=size if job.copied_in(offload) else 0.0, files=files)


def stepping(job: Job) -> Work:
    """Of the optimizer steps: of each element of a rank's four float32 are read and three written; offloaded, its
    gradient goes down besides, and its weight up."""
    ranks = 1 if job.way in ("zero0", "single") else job.world
    elements = (job.policy.parameters + job.value.parameters) / ranks * job.steps
    offload = job.offload("offload_optimizer")
    if not job.copied_in(offload):
        done = Work(0.0, 28 * elements)
    else:
        done = Work(0.0, host=(28 + 4 + job.itemsize) * elements)
    filed = 28 + 4 if job.place(offload) == "files" else 0
    if job.place(job.offload("offload_param")) == "files":
        filed += job.itemsize
    return done + Work(0.0, files=filed * elements)


def share_on_disk(job: Job) -> float:
    """Of the files of a machine, what its host's memory has no room for beside all else."""
    files = plan_memory(job).resident("files") * min(job.world, job.per_node)
    room = next(room for room in rooms(job) if room.place == "host")
    return max(0.0, files - max(0.0, room.given - room.asked)) / files if files else 0.0


def round_flops(job: Job) -> float:
    """Of scoring the panels, divided by the updates between two rounds; a budget may make them smaller."""
    config = job.settings.config
    windows = len(config.data.sources) * config.curriculum.difficulty_sample_size / job.world
    per_window = job.window * (job.policy.flops_per_token(job.window / 2) + job.policy.head_flops)
    return windows * per_window / config.frozen.refresh_every
