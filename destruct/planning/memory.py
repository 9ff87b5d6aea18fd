"""Memory of one rank over a run: both training networks, the copies of the policy, sampling, checkpoints."""

from collections.abc import Iterator
from dataclasses import replace

from destruct.planning.activations import drawing, kv_cache, loss_chunk, sampling, validating, working_per_token
from destruct.planning.job import MIB, Job
from destruct.planning.networks import Decoder
from destruct.planning.parts import Memory, Part
from destruct.planning.sharding import WAYS, Engine, fsdp_gathered, zero3_gathered

PROCESS = 80 * MIB
"""Data sets, tokenizer and Python's own objects: measured beside the tensors, whatever the model."""

PRODUCTS = 128 * MIB
"""Compiled products of bfloat16 that a CPU rank keeps, as destruct/engine/topology.py bounds them."""

KEPT_GRADIENTS = ("zero2", "fsdp")
"""Ways whose gradients live from the first backward of a minibatch to its step."""

BACKWARD = ("backward", "reduction", "step")
"""How the names of the moments end at which gradients are there."""


def plan_memory(job: Job) -> Memory:
    """Every part of one rank's memory, above that of the program itself."""
    engines = [Engine("policy", job.policy, job), Engine("value", job.value, job)]
    parts = [part for engine in engines for part in WAYS[job.way](engine)]
    if job.settings.config.warmup.lm_updates > 0:
        warming = WAYS[job.way](Engine("policy", job.policy, job, warming=True))
        parts += [part for part in warming if part.moment.endswith(("backward", "reduction"))]
    if job.way in KEPT_GRADIENTS:
        parts += _kept_gradients(job, engines, {part.moment for part in parts})
    for name, net in copies(job).items():
        parts += _copy(name, net, job)
    if job.settings.config.kl.in_loss.startswith("exact"):
        parts += _exact_kl(job, {part.moment for part in parts})
    parts += _sampling(job)
    parts += _checkpoint(job)
    program = PROCESS + job.hardware.program
    parts.append(Part("process", "data and program", round(program), place="host"))
    if job.hardware.is_cpu and job.itemsize == 2:
        parts.append(Part("process", "compiled products", PRODUCTS, place="host"))
    if job.hardware.is_cpu:  # one memory for all
        parts = [replace(part, place="host") if part.place == "device" else part for part in parts]
    return Memory(tuple(parts))


def copies(job: Job) -> dict[str, Decoder]:
    """The networks that are inference-only, by name."""
    found = {"frozen": job.policy}
    if job.settings.config.kl.reference == "initial":
        found["initial"] = job.policy
    if job.reward_model is not None:
        found["reward model"] = job.reward_model
    return found


def _kept_gradients(job: Job, engines: list[Engine], moments: set[str]) -> Iterator[Part]:
    """Gradients of both networks in every moment between a minibatch's first backward and its step.

    The policy's backward is followed by the value network's; with accumulation both hold theirs from then on.  Those of
    an offloaded optimizer stay on the device until the step.
    """
    for moment in sorted(moments):
        if not moment.endswith(BACKWARD):
            continue
        for engine in engines:
            others = engine.role == "value" and "policy" in moment
            if not (others and (job.accumulation == 1 or moment.startswith("warm-up"))):
                yield Part(engine.role, "gradients", 4 * engine.shard, moment)


def _copy(name: str, net: Decoder, job: Job) -> Iterator[Part]:
    """A network without an optimizer: in shards, but for the one process of `single`."""
    b, w, n = job.itemsize, job.world, net.parameters
    offload = job.frozen_offload
    shard = b * -(-n // w)
    if offload is not None and offload.pin_memory and not job.hardware.is_cpu:
        shard = sum(_power_of_two(b * -(-size // w)) for size in net.tensors)
    yield Part(name, "weights", shard, place=job.place(offload))
    sequences = job.shared_sequences
    moments = {f"{name} score": sequences * job.window * working_per_token(net, b)}
    if net.head != "scalar":
        rows = sequences * job.settings.config.rollout.response_tokens
        moments[f"{name} score"] += loss_chunk(net, job, rows, trains=False)
    if name == "frozen":
        moments["round"] = validating(net, job)
    gathered = 0
    if job.way == "fsdp":
        gathered = fsdp_gathered(net, b)
    elif job.way != "single":
        gathered = zero3_gathered(net, job, job.settings.frozen.zero_optimization, job.copied_in(offload))
    for moment, size in moments.items():
        yield Part(name, "activations", size, moment)
        yield Part(name, "gathered weights", gathered, moment)


def _power_of_two(size: int) -> int:
    """PyTorch rounds page-locked memory up so."""
    return 1 << (size - 1).bit_length()


def _exact_kl(job: Job, moments: set[str]) -> Iterator[Part]:
    """The reference's head, gathered once for an update, and its hidden states of all response tokens."""
    tokens = job.rollouts_per_rank * job.settings.config.rollout.response_tokens
    for moment in sorted(moments):
        if moment.endswith(BACKWARD) and not moment.startswith("warm-up"):
            yield Part("frozen", "head", job.itemsize * job.policy.embedding, moment)
            yield Part("frozen", "hidden states", job.itemsize * job.policy.hidden * tokens, moment)


def _sampling(job: Job) -> Iterator[Part]:
    """The copy of the policy that samples, its keys and values."""
    b, net = job.itemsize, job.policy
    whole = job.way == "single" or job.settings.config.rollout.gather == "once"
    if job.way != "single":  # there the policy itself samples
        if whole:
            yield Part("replica", "weights", b * net.parameters)
        # One parameter at a time is gathered, and copied.
        yield Part("replica", "gathered weights", 2 * b * max(net.tensors), "generate")
    if job.settings.config.rollout.mode == "generate":
        if whole and job.hardware.is_cpu and b == 2:
            yield Part("replica", "weights in oneDNN's order", b * net.multiplied, "generate")
        yield Part("replica", "keys and values", kv_cache(net, job), "generate")
        yield Part("replica", "activations", sampling(net, job), "generate")
    else:
        yield Part("replica", "activations", drawing(net, job), "generate")


def _checkpoint(job: Job) -> Iterator[Part]:
    """The first rank collects each copy of the policy in the host's memory before it is written."""
    for name, net in copies(job).items():
        if name != "reward model":
            yield Part(name, FIRST_RANKS, job.itemsize * net.parameters, "checkpoint", "host")


FIRST_RANKS = "whole copy of the first rank"
"""What one rank alone holds."""
