"""Memory of one training engine under each way of sharding: what the engines of destruct and DeepSpeed 0.19 allocate.

Legend: n elements of the network, w ranks, b bytes of a weight as it is multiplied, R elements of a bucket.
Moments are those of one network; what both have at the same time is added up by destruct/planning/memory.py.
"""

from collections.abc import Callable, Iterator

from destruct.planning.activations import head_gradient, kept, loss_chunk, working_per_token
from destruct.planning.job import Job
from destruct.planning.networks import Decoder
from destruct.planning.parts import ALWAYS, Part, Place

# DeepSpeed's own defaults, in elements.
PREFETCH_BUCKET = 50_000_000
MAX_LIVE = 1_000_000_000
SUB_GROUP = 1_000_000_000


class Engine:
    """A training network: its sizes, and what its own computation takes."""

    def __init__(self, role: str, net: Decoder, job: Job):
        self.role, self.net, self.job = role, net, job
        self.n, self.b, self.w = net.parameters, job.itemsize, job.world
        self.shard = -(-self.n // self.w)
        speaks = role == "policy"
        sequences = job.policy_sequences if speaks else job.settings.micro_batch
        self.tokens, self.rows = sequences * job.window, job.policy_rows if speaks else 0
        self.kept = kept(net, job, self.tokens)
        self.working = self.tokens * working_per_token(net, self.b)
        self.loss = loss_chunk(net, job, self.rows) if speaks else 0
        self.head = head_gradient(net, job, self.rows) if speaks else 0

    def key(self, name: str) -> int | None:
        """A number of the JSON's `zero_optimization`, where it is given."""
        return getattr(self.job.settings.training.zero_optimization, name)

    def part(self, what: str, size: float, moment: str = ALWAYS, place: Place = "device") -> Part:
        """A part of this network; a moment is one of its own."""
        return Part(self.role, what, round(size), moment if moment == ALWAYS else f"{self.role} {moment}", place)

    def computing(self, moment: str, share: float = 1.0) -> Iterator[Part]:
        """Activations, and what one layer and the loss work with.

        Args:
            share: of the kept activations that are still there.
        """
        yield self.part("activations", self.kept * share + self.working, moment)
        if moment == "backward":
            yield self.part("loss chunk", self.loss + self.head, moment)

    def scoring(self) -> Iterator[Part]:
        """A forward without a backward."""
        yield self.part("activations", self.working, "score")
        yield self.part("loss chunk", self.loss, "score")

    def adam_step(self, size: int, place: Place, moment: str = "step") -> Part:
        """What Adam works with on `size` elements: torch's loop makes two copies, its grouped form for GPUs one."""
        copies = 1 if place == "device" and not self.job.hardware.is_cpu else 2
        return self.part("optimizer step", 4 * size * copies, moment, place)

    @property
    def gloo_copy(self) -> int:
        """Copies that a reduce-scatter makes of its input: gloo sums in one."""
        return 1 if self.job.hardware.is_cpu and self.w > 1 else 0


def zero3(engine: Engine) -> Iterator[Part]:
    """Everything in shards; a bucket of gradients is put in order, reduced, and added to the rank's own part."""
    n, b, w, shard, job = engine.n, engine.b, engine.w, engine.shard, engine.job
    weights: Place = "host" if job.offload("offload_param") else "device"
    states: Place = "host" if job.offload("offload_optimizer") else "device"
    yield engine.part("weights", b * shard, place=weights)
    yield engine.part("master weights", 4 * shard, place=states)
    yield engine.part("optimizer", 8 * shard, place=states)
    yield engine.part("gradients", 4 * shard, place=states)
    bucket = job.settings.training.zero_optimization.reduce_bucket_size
    filled = min(bucket, n)
    # Memory that is never written to takes none of a CPU's.
    yield engine.part("bucket", 4 * (filled if job.hardware.is_cpu else bucket))
    live, prefetch = engine.key("stage3_max_live_parameters"), engine.key("stage3_prefetch_bucket_size")
    live = min(n, MAX_LIVE if live is None else live)
    # A bucket that has been gathered is copied parameter by parameter.
    gathered = b * (live + min(n, PREFETCH_BUCKET if prefetch is None else prefetch)) if w > 1 else 0
    if weights == "host":
        gathered = max(gathered, b * live)
    yield from engine.scoring()
    yield engine.part("gathered weights", gathered, "score")
    yield from engine.computing("backward")
    yield engine.part("gathered weights", gathered, "backward")
    left = 1 - filled / n  # of the backward, when the first bucket is full
    yield from engine.computing("reduction", left)
    yield engine.part("gathered weights", gathered * left, "reduction")
    yield engine.part("reduction", 4 * filled * (1 + engine.gloo_copy), "reduction")
    group = min(shard, engine.key("sub_group_size") or SUB_GROUP)
    yield engine.part("gradients in one piece", 4 * group, "step", states)
    yield engine.adam_step(group, states)


def zero2(engine: Engine) -> Iterator[Part]:
    """Weights whole on every rank; gradients are added up in the part that a rank owns."""
    n, b, shard, job = engine.n, engine.b, engine.shard, engine.job
    states: Place = "host" if job.offload("offload_optimizer") else "device"
    yield engine.part("weights", b * n)
    yield engine.part("master weights", 4 * shard, place=states)
    yield engine.part("optimizer", 8 * shard, place=states)
    bucket = job.settings.training.zero_optimization.reduce_bucket_size
    filled, two = min(bucket, n), job.settings.training.zero_optimization.overlap_comm
    size = b * filled if job.hardware.is_cpu else b * bucket * (2 if two else 1)
    yield from engine.scoring()
    yield from engine.computing("backward")
    left = 1 - filled / n
    yield from engine.computing("reduction", left)
    for moment in ("backward", "reduction"):
        yield engine.part("bucket", size, moment)
    yield engine.part("reduction", (b + 4) * filled, "reduction")
    yield engine.adam_step(shard, states)


def zero1(engine: Engine) -> Iterator[Part]:
    """The optimizer's state in parts; weights and float32 gradients whole on every rank."""
    n, b, shard, job = engine.n, engine.b, engine.shard, engine.job
    states: Place = "host" if job.offload("offload_optimizer") else "device"
    yield engine.part("weights", b * n)
    yield engine.part("master weights", 4 * shard, place=states)
    yield engine.part("optimizer", 8 * shard, place=states)
    yield engine.part("gradients", 4 * n)
    yield from engine.scoring()
    yield from engine.computing("backward")
    yield engine.part("gradients of a micro-batch", b * n, "reduction")
    yield engine.adam_step(shard, states)


def whole(engine: Engine) -> Iterator[Part]:
    """ZeRO 0 in float32, or plain torch: every rank holds everything."""
    n, b = engine.n, engine.b
    yield engine.part("weights", b * n)
    if b == 2:
        yield engine.part("master weights", 4 * n)
    yield engine.part("optimizer", 8 * n)
    yield engine.part("gradients", 4 * n)
    yield from engine.scoring()
    yield from engine.computing("backward")
    if b == 2:
        yield engine.part("gradients of a micro-batch", (b + 4) * n, "reduction")
    yield engine.adam_step(max(engine.net.tensors), "device")


def fsdp(engine: Engine) -> Iterator[Part]:
    """Float32 shards; a layer's weights are gathered in the network's dtype, its gradient reduced in float32."""
    b, shard, net, job = engine.b, engine.shard, engine.net, engine.job
    yield engine.part("weights", 4 * shard)
    yield engine.part("optimizer", 8 * shard)
    root, unit = fsdp_root(net), fsdp_largest_unit(net)
    gathered = fsdp_gathered(net, b) if engine.w > 1 or b == 2 else 0
    yield from engine.scoring()
    yield engine.part("gathered weights", gathered, "score")
    yield from engine.computing("backward")
    yield engine.part("gathered weights", gathered, "backward")
    yield from engine.computing("reduction", (net.layers - 1) / net.layers)
    yield engine.part("gathered weights", gathered, "reduction")
    copies = 1 + engine.gloo_copy + (0 if job.hardware.is_cpu else 1)  # on a GPU the one before may still be sent
    yield engine.part("reduction", unit * (b + 4 * copies), "reduction")
    yield engine.part("gathered weights", b * root, "last reduction")
    yield engine.part("reduction", root * (b + 4 * (1 + engine.gloo_copy)), "last reduction")
    # On a GPU Adam takes all parameters at once, on a CPU one after another.
    yield engine.adam_step(max(net.tensors) // engine.w if job.hardware.is_cpu else shard, "device")


def fsdp_root(net: Decoder) -> int:
    """Elements that stay with the root of destruct/engine/fsdp.py: a tied weight, the last norm, a scalar head."""
    return net.hidden + {"tied": net.embedding, "untied": 0, "scalar": net.hidden + 1}[net.head]


def fsdp_units(net: Decoder) -> int:
    """Units that are gathered one after another: layers, untied embeddings, the root."""
    return net.layers + 1 + {"tied": 0, "untied": 2, "scalar": 1}[net.head]


def fsdp_gathered(net: Decoder, b: int) -> int:
    """Bytes that are gathered at a time: the root, the unit at work and the next one."""
    return b * (fsdp_root(net) + 2 * fsdp_largest_unit(net))


def fsdp_largest_unit(net: Decoder) -> int:
    """Elements of the largest unit that is gathered by itself: a layer, or untied embeddings."""
    return max(net.layer, 0 if net.head == "tied" else net.embedding)


WAYS: dict[str, Callable[[Engine], Iterator[Part]]] = {
    "zero0": whole,
    "zero1": zero1,
    "zero2": zero2,
    "zero3": zero3,
    "fsdp": fsdp,
    "single": whole,
}
"""Way of sharding -> the memory of a training engine."""
