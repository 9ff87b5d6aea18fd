"""Bytes that the ranks exchange in an update, by collective.

Legend: n elements of a network, b bytes of a weight as it is multiplied.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from destruct.config.deepspeed import ZeroOptimization
from destruct.planning.job import WINDOWS_PER_FORWARD, Job, round_forwards
from destruct.planning.networks import Decoder
from destruct.planning.sharding import ALL_REDUCE_BUCKET, PREFETCH_BUCKET, fsdp_root, fsdp_units

PERSISTENCE = 100_000
"""DeepSpeed's default: parameters of up to so many elements stay gathered between steps."""

TRIPS = {"all-gather": 1, "reduce-scatter": 1, "all-reduce": 2}
"""How often a ring sends (w - 1)/w of the whole tensor through each rank."""


@dataclass(frozen=True, slots=True)
class Collective:
    """A kind of call and all that its calls carry in one update; small sums of figures are left out."""

    phase: str  # "generate", "score", "update", "kl" or "round"
    network: str
    what: str
    kind: str  # a key of TRIPS
    bytes: float  # of the whole tensors, all calls together
    calls: float

    def sent(self, world: int) -> float:
        """Bytes that each rank sends, and receives, in a ring."""
        return self.bytes * TRIPS[self.kind] * (world - 1) / world


def plan_collectives(job: Job) -> list[Collective]:
    """The collectives of an update; those of a round are divided by the updates between two."""
    if job.world == 1:
        return []
    return [
        *_sampling(job),
        *_training(job, "policy", job.policy),
        *_training(job, "value", job.value),
        *_scoring(job),
        *_round(job),
    ]


def _sampling(job: Job) -> Iterator[Collective]:
    rollout, n, tensors = job.settings.config.rollout, job.policy.parameters, len(job.policy.tensors)
    if job.way not in ("zero3", "fsdp"):
        return
    if rollout.gather == "layers":
        forwards = -(-job.rollouts_per_rank // WINDOWS_PER_FORWARD)
        times = rollout.response_tokens if rollout.mode == "generate" else forwards
        again = job.policy.embedding if job.policy.head == "tied" else 0  # once as embeddings, once as head
        size = job.itemsize * (n + again) * times
        yield Collective("generate", "replica", "a layer at every token", "all-gather", size, tensors * times)
    else:
        yield Collective("generate", "replica", "a whole copy", "all-gather", job.itemsize * n, tensors)


def _staying(job: Job, net: Decoder, zero: ZeroOptimization) -> int:
    """Elements of small parameters that DeepSpeed keeps gathered from step to step."""
    threshold = zero.stage3_param_persistence_threshold
    most = PERSISTENCE if threshold is None else threshold
    return sum(size for size in net.tensors if size <= most) if job.way == "zero3" else 0


def _forward_calls(job: Job, net: Decoder, zero: ZeroOptimization) -> int:
    """Calls that gather a network once for a forward: DeepSpeed fills buckets, FSDP takes unit by unit."""
    if job.way == "fsdp":
        return fsdp_units(net)
    bucket = zero.stage3_prefetch_bucket_size
    return -(-net.parameters // max(1, PREFETCH_BUCKET if bucket is None else bucket))


def _training(job: Job, role: str, net: Decoder) -> Iterator[Collective]:
    b, n, passes, zero = job.itemsize, net.parameters, job.train_passes, job.settings.training.zero_optimization
    buckets = -(-n // zero.reduce_bucket_size)
    forward, updated = _forward_calls(job, net, zero), "weights after a step"
    if job.way == "zero3":
        staying = _staying(job, net, zero)
        # Backward, DeepSpeed 0.19 prefetches nothing: layer by layer, the embeddings and the head.
        calls, what = (forward + net.layers + 2) * passes, "weights, forward and backward"
        yield Collective("update", role, what, "all-gather", 2 * b * (n - staying) * passes, calls)
        yield Collective("update", role, "small weights after a step", "all-gather", b * staying * job.steps, job.steps)
        yield Collective("update", role, "gradients", "reduce-scatter", 4 * n * passes, buckets * passes)
    elif job.way == "fsdp":
        gathered = 2 * n - fsdp_root(net)  # the root stays gathered between forward and backward
        calls, what = (2 * forward - 1) * passes, "weights, forward and backward"
        yield Collective("update", role, what, "all-gather", b * gathered * passes, calls)
        yield Collective("update", role, "gradients", "reduce-scatter", 4 * n * passes, forward * passes)
    elif job.way == "zero2":
        yield Collective("update", role, "gradients", "all-reduce", 4 * n * passes, buckets * passes)
        yield Collective("update", role, updated, "all-gather", b * n * job.steps, job.steps)
    else:  # stage 1 has them in one piece, stage 0 in DeepSpeed's own buckets
        calls = job.steps * (1 if job.way == "zero1" else -(-n // ALL_REDUCE_BUCKET))
        yield Collective("update", role, "gradients", "all-reduce", 4 * n * job.steps, calls)
        if job.way == "zero1":
            yield Collective("update", role, updated, "all-gather", b * n * job.steps, job.steps)


def _scoring(job: Job) -> Iterator[Collective]:
    shared, copies = job.shared_passes, job.reference_passes
    if job.way in ("zero3", "fsdp"):
        yield _passes(job, "score", "policy", job.policy, job.micro_batches)
        yield _passes(job, "score", "value", job.value, shared)
        if job.early_stop_passes:
            yield _passes(job, "update", "policy", job.policy, job.early_stop_passes)
        yield _passes(job, "kl", "policy", job.policy, shared)
    yield _passes(job, "score", "frozen", job.policy, copies)
    if job.reward_model is not None:
        yield _passes(job, "score", "reward model", job.reward_model, shared)
    if job.settings.config.kl.in_loss.startswith("exact"):
        yield Collective("update", "frozen", "head", "all-gather", job.itemsize * job.policy.embedding, 1)


def _passes(job: Job, phase: str, network: str, net: Decoder, passes: float) -> Collective:
    """Forwards without a backward."""
    training = network in ("policy", "value")
    zero = job.settings.training.zero_optimization if training else job.settings.frozen.zero_optimization
    calls, gathered = _forward_calls(job, net, zero) * passes, net.parameters - _staying(job, net, zero)
    return Collective(phase, network, "weights", "all-gather", job.itemsize * gathered * passes, calls)


def _round(job: Job) -> Iterator[Collective]:
    yield _passes(job, "round", "frozen", job.policy, round_forwards(job))
