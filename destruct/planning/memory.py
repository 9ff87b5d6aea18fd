"""Memory of one rank over an update: both training networks, the copies of the policy, sampling, checkpoints."""

from collections.abc import Iterator
from dataclasses import replace

from destruct.planning.activations import BLOCK, kv_cache, loss_chunk, sampling, working_per_token
from destruct.planning.job import MIB, Job
from destruct.planning.networks import Decoder
from destruct.planning.parts import Memory, Part, Place
from destruct.planning.sharding import MAX_LIVE, PREFETCH_BUCKET, WAYS, Engine, fsdp_gathered

PROCESS = 80 * MIB
"""Data sets, tokenizer and Python's own objects: measured beside the tensors, whatever the model."""

KEPT_GRADIENTS = ("zero2", "fsdp")
"""Ways whose gradients live from the first backward of a minibatch to its step."""


def plan_memory(job: Job) -> Memory:
    """Every part of one rank's memory, above that of the program itself."""
    engines = [Engine("policy", job.policy, job), Engine("value", job.value, job)]
    parts = [part for engine in engines for part in WAYS[job.way](engine)]
    if job.way in KEPT_GRADIENTS:
        parts += _kept_gradients(job, engines)
    for name, net in copies(job).items():
        parts += _copy(name, net, job)
    parts += _sampling(job)
    parts += _checkpoint(job)
    parts.append(Part("process", "data and program", PROCESS, place="host"))
    if job.hardware.is_cpu:  # one memory for all
        parts = [replace(part, place="host") for part in parts]
    return Memory(tuple(parts))


def copies(job: Job) -> dict[str, Decoder]:
    """The networks that are inference-only, by name."""
    found = {"frozen": job.policy}
    if job.settings.config.kl.reference == "initial":
        found["initial"] = job.policy
    if job.reward_model is not None:
        found["reward model"] = job.reward_model
    return found


def _kept_gradients(job: Job, engines: list[Engine]) -> Iterator[Part]:
    """Gradients of both networks in every moment between a minibatch's first backward and its step.

    The policy's backward is followed by the value network's; with accumulation both hold theirs from then on.
    """
    states: Place = "host" if job.way == "zero2" and job.offload("offload_optimizer") else "device"
    moments = ("backward", "reduction", "last reduction") if job.way == "fsdp" else ("backward", "reduction")
    for engine in engines:
        for at in ("policy", "value"):
            if engine.role == "value" and at == "policy" and job.accumulation == 1:
                continue
            for moment in (*moments, "step"):
                yield Part(engine.role, "gradients", 4 * engine.shard, f"{at} {moment}", states)


def _copy(name: str, net: Decoder, job: Job) -> Iterator[Part]:
    """A network without an optimizer, in shards; below several ranks of `single`, whole."""
    b, w, n = job.itemsize, job.world, net.parameters
    place: Place = "host" if job.frozen_offload else "device"
    yield Part(name, "weights", b * -(-n // w), place=place)
    moment = f"{name} score"
    sequences = job.settings.micro_batch
    yield Part(name, "activations", sequences * job.window * working_per_token(net, b), moment)
    rows = sequences * job.settings.config.rollout.response_tokens
    if net.head != "scalar":
        yield Part(name, "loss chunk", loss_chunk(net, job, rows), moment)
    if job.way == "fsdp":
        yield Part(name, "gathered weights", fsdp_gathered(net, b), moment)
    elif job.way != "single" and (w > 1 or place == "host"):
        zero = job.settings.frozen.zero_optimization
        live = zero.stage3_max_live_parameters
        prefetch = zero.stage3_prefetch_bucket_size
        elements = min(n, MAX_LIVE if live is None else live)
        elements += min(n, PREFETCH_BUCKET if prefetch is None else prefetch)
        yield Part(name, "gathered weights", b * elements, moment)


def _sampling(job: Job) -> Iterator[Part]:
    """The copy of the policy that samples, its keys and values."""
    b, net = job.itemsize, job.policy
    if job.way == "single":
        pass  # the policy itself
    elif job.settings.config.rollout.gather == "once":
        yield Part("replica", "weights", b * net.parameters)
        # One parameter at a time is gathered and copied.
        yield Part("replica", "gathered weights", 2 * b * max(net.tensors), "generate")
    else:
        largest = max(net.embedding, *net.layer_tensors)
        yield Part("replica", "gathered weights", 2 * b * largest, "generate")
    if job.settings.config.rollout.mode == "generate":
        yield Part("replica", "keys and values", kv_cache(net, job), "generate")
        yield Part("replica", "activations", sampling(net, job), "generate")
    else:
        tokens = job.rollouts_per_rank * job.window
        yield Part("replica", "activations", tokens * working_per_token(net, b) + 4 * BLOCK, "generate")


def _checkpoint(job: Job) -> Iterator[Part]:
    """The first rank collects each copy of the policy in the host's memory before it is written."""
    for name, net in copies(job).items():
        if name != "reward model":
            yield Part(name, "whole copy", job.itemsize * net.parameters, "checkpoint", "host")
