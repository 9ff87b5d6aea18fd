"""Memory of one training engine under each way of sharding: what the engines of destruct and DeepSpeed 0.19 allocate.

Legend: n elements of the network, w ranks, b bytes of a weight as it is multiplied, R elements of a bucket.
Moments are those of one network; what both have at the same time is added up by destruct/planning/memory.py.
"""

from collections.abc import Callable, Iterator

from destruct.config.deepspeed import ZeroOptimization
from destruct.planning.activations import head_gradient, kept, loss_chunk, validating, working_per_token
from destruct.planning.job import Job
from destruct.planning.networks import Decoder
from destruct.planning.parts import ALWAYS, Part, Place

# DeepSpeed's own defaults, in elements.
PREFETCH_BUCKET = 50_000_000
MAX_LIVE = 1_000_000_000
SUB_GROUP = 1_000_000_000
ALL_REDUCE_BUCKET = 500_000_000


class Engine:
    """A training network: its sizes, and what its own computation takes.

    Args:
        warming: the policy learns from whole windows, before PPO.
    """

    def __init__(self, role: str, net: Decoder, job: Job, warming: bool = False):
        self.role, self.net, self.job, self.prefix = role, net, job, "warm-up " if warming else ""
        self.n, self.b, self.w = net.parameters, job.itemsize, job.world
        self.shard = -(-self.n // self.w)
        speaks = role == "policy"
        sequences = job.policy_sequences if speaks else job.settings.micro_batch
        rows = job.policy_rows if speaks else sequences * job.settings.config.rollout.response_tokens
        if warming:
            sequences = -(-job.rollouts_per_rank // job.accumulation)
            rows = sequences * (job.window - 1)
        self.tokens = sequences * job.window
        self.kept = kept(net, job, self.tokens, rows)
        self.working = self.tokens * working_per_token(net, self.b)
        self.head = loss_chunk(net, job, rows, trains=True) + head_gradient(net, job, rows) if speaks else 0
        self.bucket = job.settings.training.zero_optimization.reduce_bucket_size
        self.filled = min(self.bucket, self.n)

    def key(self, name: str) -> int | None:
        """A number of the JSON's `zero_optimization`, where it is given."""
        return getattr(self.job.settings.training.zero_optimization, name)

    def part(self, what: str, size: float, moment: str = ALWAYS, place: Place = "device") -> Part:
        """A part of this network; a moment is one of its own."""
        when = moment if moment == ALWAYS else f"{self.prefix}{self.role} {moment}"
        return Part(self.role, what, round(size), when, place)

    def computing(self, moment: str, share: float = 1.0) -> Iterator[Part]:
        """Activations, and what one layer and the loss work with.

        Args:
            share: of the kept activations that are still there.
        """
        yield self.part("activations", self.kept * share + self.working, moment)
        if moment == "backward":
            yield self.part("loss chunk", self.head, moment)

    def scoring(self) -> Iterator[Part]:
        """A forward without a backward: of several micro-batches, or of one as it is trained."""
        job, shared = self.job, self.job.shared_sequences
        tokens = max(self.tokens, shared * job.window)
        yield self.part("activations", tokens * working_per_token(self.net, self.b), "score")
        if self.role == "policy":
            rows = max(job.policy_rows, shared * job.settings.config.rollout.response_tokens)
            yield self.part("loss chunk", loss_chunk(self.net, job, rows, trains=False), "score")
            yield self.part("activations", validating(self.net, job), "validation")

    @property
    def gloo_copy(self) -> int:
        """Copies that a reduce-scatter makes of its input: gloo sums in one."""
        return 1 if self.job.hardware.is_cpu and self.w > 1 else 0

    @property
    def oversized(self) -> int:
        """Elements of the largest parameter where it is larger than a bucket, and reduced by itself; else 0."""
        largest = max(self.net.tensors)
        return largest if largest > self.bucket else 0

    @property
    def left(self) -> float:
        """Share of the backward that is to come when the first bucket is full."""
        return 1 - self.filled / self.n

    def reducing(self, gathered: int, together: int, alone: int) -> Iterator[Part]:
        """The moments at which gradients are reduced.

        Args:
            gathered: bytes of weights that are gathered in a backward.
            together: bytes that a full bucket takes while it is reduced.
            alone: bytes that a parameter larger than a bucket takes: an untied head at the very beginning of the
                backward, embeddings at its end.
        """
        yield from self.computing("reduction", self.left)
        yield self.part("gathered weights", gathered * self.left, "reduction")
        yield self.part("reduction", together, "reduction")
        if alone:
            first = self.net.head == "untied"
            moment = "first reduction" if first else "last reduction"
            yield from self.computing(moment, float(first))
            yield self.part("gathered weights", gathered * first, moment)
            yield self.part("reduction", alone, moment)


def zero3(engine: Engine) -> Iterator[Part]:
    """Everything in shards; a bucket of gradients is put in order, reduced, and added to the rank's own part."""
    b, shard, job = engine.b, engine.shard, engine.job
    offloaded = job.offload("offload_param")
    weights, states = job.place(offloaded), job.place(job.offload("offload_optimizer"))
    yield engine.part("weights", b * shard, place=weights)
    if b == 2 or states != "device":  # else the weights are their own masters
        yield engine.part("master weights", 4 * shard, place=states)
    yield engine.part("optimizer", 8 * shard, place=states)
    yield engine.part("gradients", 4 * shard, place="device" if states == "device" else "host")
    if states != "device":  # copied into one piece, which stays
        yield engine.part("gradients", 4 * shard, place=states)
    # Memory that is never written to takes none of a CPU's.
    yield engine.part("bucket", 4 * (engine.filled if job.hardware.is_cpu else engine.bucket))
    gathered = zero3_gathered(engine.net, job, job.settings.training.zero_optimization, job.copied_in(offloaded))
    yield from engine.scoring()
    yield from engine.computing("backward")
    for moment in ("score", "validation", "backward"):
        if engine.role == "policy" or moment != "validation":
            yield engine.part("gathered weights", gathered, moment)
    copies = 2 if job.hardware.is_cpu else 1  # gloo sums in a copy, of one rank too
    alone = (4 * copies + (b if b == 2 else 0)) * engine.oversized
    yield from engine.reducing(gathered, 4 * copies * engine.filled, alone)
    if states == "device":
        group = min(shard, engine.key("sub_group_size") or SUB_GROUP)
        yield engine.part("gradients in one piece", 4 * group, "step")


def zero3_gathered(net: Decoder, job: Job, zero: ZeroOptimization, copied_in: bool) -> int:
    """Bytes that ZeRO 3 gathers at a time: up to its limit, and a bucket that is copied parameter by parameter."""
    if job.world == 1 and not copied_in:
        return 0
    live, prefetch = zero.stage3_max_live_parameters, zero.stage3_prefetch_bucket_size
    elements = min(net.parameters, MAX_LIVE if live is None else live)
    if job.world > 1:
        elements += min(net.parameters, PREFETCH_BUCKET if prefetch is None else prefetch)
    return job.itemsize * elements


def zero2(engine: Engine) -> Iterator[Part]:
    """Weights whole on every rank; gradients are added up in the part that a rank owns."""
    n, b, shard, job = engine.n, engine.b, engine.shard, engine.job
    states = job.place(job.offload("offload_optimizer"))
    yield engine.part("weights", b * n)
    yield engine.part("master weights", 4 * shard, place=states)
    yield engine.part("optimizer", 8 * shard, place=states)
    if states == "host":  # a copy of the gradients, and of the weights on their way back
        yield engine.part("gradients", 4 * shard, place="host")
        yield engine.part("weights", b * shard, place="host")
    two = job.settings.training.zero_optimization.overlap_comm
    size = b * engine.filled if job.hardware.is_cpu else b * engine.bucket * (2 if two else 1)
    yield from engine.scoring()
    yield from engine.computing("backward")
    yield engine.part("bucket", size, "backward")
    together, alone = size + (b + 4) * engine.filled, (b + 4) * engine.oversized
    yield from engine.reducing(0, together, size + alone if alone else 0)


def zero1(engine: Engine) -> Iterator[Part]:
    """The optimizer's state in parts; weights and float32 gradients whole on every rank."""
    n, b, shard, job = engine.n, engine.b, engine.shard, engine.job
    states = job.place(job.offload("offload_optimizer"))
    yield engine.part("weights", b * n)
    yield engine.part("master weights", 4 * shard, place=states)
    yield engine.part("optimizer", 8 * shard, place=states)
    yield engine.part("gradients", 4 * n)
    # Of the micro-batch, in the dtype of the weights: they stay until the step.
    yield engine.part("gradients", b * n)
    yield from engine.scoring()
    yield from engine.computing("backward")


def whole(engine: Engine) -> Iterator[Part]:
    """ZeRO 0 in float32, or plain torch: every rank holds everything."""
    n, b, largest = engine.n, engine.b, max(engine.net.tensors)
    yield engine.part("weights", b * n)
    if b == 2:
        yield engine.part("master weights", 4 * n)
    yield engine.part("optimizer", 8 * n)
    yield engine.part("gradients", 4 * n)
    yield from engine.scoring()
    yield from engine.computing("backward")
    if b == 2:  # those of the micro-batch, rounded tensor by tensor
        yield engine.part("gradients of a micro-batch", b * n + 4 * largest, "reduction")
    elif engine.w > 1:
        yield engine.part("reduction", 4 * min(n, ALL_REDUCE_BUCKET), "reduction")


def fsdp(engine: Engine) -> Iterator[Part]:
    """Float32 shards; a layer's weights are gathered in the network's dtype, its gradient reduced in float32."""
    b, shard, net, job = engine.b, engine.shard, engine.net, engine.job
    yield engine.part("weights", 4 * shard)
    yield engine.part("optimizer", 8 * shard)
    root, unit = fsdp_root(net), fsdp_largest_unit(net)
    gathered = fsdp_gathered(net, b) if engine.w > 1 or b == 2 else 0
    yield from engine.scoring()
    yield from engine.computing("backward")
    for moment in ("score", "validation", "backward"):
        if engine.role == "policy" or moment != "validation":
            yield engine.part("gathered weights", gathered, moment)
    yield from engine.computing("reduction", (net.layers - 1) / net.layers)
    yield engine.part("gathered weights", gathered, "reduction")
    copies = 1 + engine.gloo_copy + (0 if job.hardware.is_cpu else 1)  # on a GPU the one before may still be sent
    yield engine.part("reduction", unit * (b + 4 * copies), "reduction")
    yield engine.part("gathered weights", b * root, "last reduction")
    yield engine.part("reduction", root * (b + 4 * (1 + engine.gloo_copy)), "last reduction")


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
