"""What a forward keeps for its backward, what one layer works with, and what the head and sampling take: bytes.

Legend: b bytes of a weight, H hidden width, I width of the feed-forward layer, V vocabulary, N rows of the loss.
"""

from destruct.planning.job import LOGITS_AT_ONCE, MIB, WINDOWS_PER_FORWARD, Job
from destruct.planning.networks import Decoder

DENSE_COLUMNS = 512  # longest row of a CPU whose attention is dense
BLOCK = 4 * MIB  # of the chunked loss's row arithmetic; three or four work at a time


def kept_per_token(net: Decoder, b: int, window: int, attention: str = "sdpa") -> int:
    """What one layer keeps for its backward, per token.

    transformers' Llama: each norm keeps its input in float32 and its result, the products their inputs, the
    feed-forward layer four tensors of width I.  A test compares with the tensors that autograd saves.

    Args:
        attention: `sdpa` keeps queries, keys and values, these repeated to the number of query heads where there is a
            mask, its row of the mask, output and log-sum-exp; `eager` the probabilities of every head besides, in
            float32 and as they are multiplied; `dense` (short rows on a CPU) queries, keys, values, output and the
            probabilities.
    """
    h, q, probabilities = net.hidden, net.q_width, net.heads * window
    norms = 2 * ((4 + b) * h + 4) + net.qk_norm * (4 + b) * (q + net.kv_width)
    inside = b * (2 * h + 4 * q + window) + 4 * net.heads
    if attention == "eager":
        inside += probabilities * (b + (4 if b == 2 else 0))
    if attention == "dense":
        inside = b * (2 * h + 2 * q + 2 * net.kv_width + probabilities)
    return norms + inside + 4 * b * net.intermediate


def attention_of(job: Job) -> str:
    """How destruct/models/attention.py computes what the config calls `sdpa`; else as the config says."""
    attention = job.settings.config.model.attention
    short = job.hardware.is_cpu and job.window <= DENSE_COLUMNS
    return "dense" if attention == "sdpa" and short else attention


def working_per_token(net: Decoder, b: int) -> int:
    """What one layer works with at its widest, per token: three tensors of the feed-forward layer and two norms."""
    return 3 * b * net.intermediate + 8 * net.hidden


def kept(net: Decoder, job: Job, tokens: int, rows: int) -> int:
    """What all layers keep for their backward; with activation checkpointing their borders, and one layer's inside.

    Args:
        rows: whose states are asked for; the last layer's feed-forward part and the last norm read these alone.
    """
    b, read = job.itemsize, min(tokens, rows)
    inside = kept_per_token(net, b, job.window, attention_of(job))
    norm = (4 + b) * net.hidden + 4
    ends = tokens * b * net.hidden + read * norm  # the embeddings' output, the last norm
    if job.settings.config.model.activation_checkpointing:
        return tokens * (net.layers * b * net.hidden + inside) + ends
    return tokens * net.layers * inside - (tokens - read) * (norm + 4 * b * net.intermediate) + ends


def chunk_rows(net: Decoder, job: Job) -> int:
    """Rows of logits that the fused loss holds at a time, as the implementations choose them (destruct/ops)."""
    mib = job.settings.config.engine.loss_chunk_mib
    if job.loss == "reference":
        return job.policy_rows
    if job.loss == "triton":
        fitting = (mib or 1024) * MIB // (net.vocab * (4 + job.itemsize))
        return max(128, min(4096, fitting // 128 * 128))
    fitting = (mib or 64) * MIB // (net.vocab * job.itemsize)
    return max(16, min(1024, fitting // 16 * 16))


def loss_chunk(net: Decoder, job: Job, rows: int, trains: bool) -> int:
    """Logits of the fused loss, and what its row arithmetic takes.

    Args:
        trains: gradients are asked for; Triton scores without ever holding logits.
    """
    if job.loss == "triton" and not trains:
        return 0
    count = min(rows, chunk_rows(net, job))
    models = 2 if trains and job.settings.config.kl.in_loss.startswith("exact") else 1
    if job.loss == "triton":
        return count * net.vocab * (4 * models + job.itemsize)
    if job.loss == "reference":
        return 4 * count * net.vocab * (3 + models)
    return models * (count * net.vocab * job.itemsize + 3 * BLOCK)


def head_gradient(net: Decoder, job: Job, rows: int) -> int:
    """Gradient of the head's weight (V, H) in the making: in float32 where several chunks add to it, then rounded."""
    several = rows > chunk_rows(net, job) and job.itemsize == 2
    return net.embedding * (job.itemsize + (4 if several else 0)) + rows * net.hidden * job.itemsize


def kv_cache(net: Decoder, job: Job) -> int:
    """Keys and values of all rollouts that a rank samples at once."""
    return 2 * job.itemsize * net.kv_width * job.rollouts_per_rank * job.window * net.layers


def sampling(net: Decoder, job: Job) -> int:
    """The widest moment of sampling: the prompts' pass, or the float64 distribution of every rollout's next token."""
    n, b, p = job.rollouts_per_rank, job.itemsize, job.settings.config.rollout.prompt_tokens
    prompts = n * p * working_per_token(net, b)
    repeated = 2 * n * job.window * net.q_width * b  # keys and values of one layer, once for each query head
    return max(prompts, repeated + n * net.vocab * (16 + b))


def drawing(net: Decoder, job: Job) -> int:
    """Of `per_position`: a forward of some windows, then the float64 distributions of a chunk of their positions."""
    n = min(job.rollouts_per_rank, WINDOWS_PER_FORWARD)
    return n * job.window * (working_per_token(net, job.itemsize) + job.itemsize * net.hidden) + 18 * LOGITS_AT_ONCE


def validating(net: Decoder, job: Job) -> int:
    """A forward of as many held-out windows as are scored at once, by the policy and in a round by the frozen copy."""
    tokens = WINDOWS_PER_FORWARD * job.window
    return tokens * working_per_token(net, job.itemsize) + loss_chunk(net, job, tokens, trains=False)
