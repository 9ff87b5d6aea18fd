"""What the kernels are made of: functions that are compiled into them, of one row or tile of logits.

Legend: V vocabulary, W >= V width of a row in memory, z the policy's logits and m their maximum, y the reference's.
`how` is (V, W, 1 / temperature, scale, cap), what it takes to read a row as logits.
"""

import triton
import triton.language as tl

from destruct.ops.rows import KL_NAMES
from destruct.ppo.kl import LOG_RATIO_CLAMP

LOWEST = tl.constexpr(-1e30)  # stands for a shifted logit of -inf where it is multiplied by its probability, 0
CLAMP = tl.constexpr(LOG_RATIO_CLAMP)
K1 = tl.constexpr(KL_NAMES.index("k1"))
K2 = tl.constexpr(KL_NAMES.index("k2"))
K3_WEIGHTED = tl.constexpr(KL_NAMES.index("k3_weighted"))
EXACT = tl.constexpr(KL_NAMES.index("exact"))
EXACT_FORWARD = tl.constexpr(KL_NAMES.index("exact_forward"))


@triton.jit
def mapped(products, scale, soft_cap, CAPPED: tl.constexpr):
    """Logits before the temperature, and their derivative in the products but for the scale."""
    logits = products * scale
    slope = 1.0
    if CAPPED:
        odds = tl.exp(-2.0 * tl.abs(logits / soft_cap))
        tanh = (1.0 - odds) / (1.0 + odds)
        logits = tl.where(logits < 0, -tanh, tanh) * soft_cap
        slope = 4.0 * odds / ((1.0 + odds) * (1.0 + odds))
    return logits, slope


@triton.jit
def shifted(logits, largest, inverse_temperature):
    """(logits - largest) / temperature, from LOWEST on.  By `where`, which lets nan through."""
    # Shift, then divide: a common offset of 1e4 then costs no digit.
    x = (logits - tl.where(largest == -float("inf"), 0.0, largest)) * inverse_temperature
    return tl.where(x < LOWEST, LOWEST, x)


@triton.jit
def shift_by(largest, new, inverse_temperature):
    """By how much sums shifted by `largest` change when `new` takes its place; no columns have nothing to shift."""
    return tl.where(largest == -float("inf"), 0.0, (largest - new) * inverse_temperature)


@triton.jit
def block(row, columns, how, CAPPED: tl.constexpr):
    """Logits of some columns, -inf beyond the vocabulary, and their derivative as `mapped` gives it."""
    vocab, width, scale, soft_cap = how[0], how[1], how[3], how[4]
    # Masked by the width, a multiple of 16: by an odd vocabulary, loads would be of 4 bytes.
    products = tl.load(row + columns, mask=columns < width, other=0.0)
    logits, slope = mapped(products, scale, soft_cap, CAPPED)
    return tl.where(columns < vocab, logits, -float("inf")), slope


@triton.jit
def sums(row, how, CAPPED: tl.constexpr, BLOCK: tl.constexpr):
    """m, sum of e^(z - m) and sum of e^(z - m) (z - m) over a row, merged block by block as `LogitSums` are."""
    vocab, inverse_temperature = how[0], how[2]
    largest = tl.full((), -float("inf"), tl.float32)
    totals = tl.zeros((BLOCK,), tl.float32)
    weighted = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, vocab, BLOCK):
        logits = block(row, start + tl.arange(0, BLOCK), how, CAPPED)[0]
        new = tl.maximum(largest, tl.max(logits, 0))
        step = shift_by(largest, new, inverse_temperature)
        z = shifted(logits, new, inverse_temperature)
        powers = tl.exp(z)
        weighted = (weighted + step * totals) * tl.exp(step) + powers * z
        totals = totals * tl.exp(step) + powers
        largest = new
    return largest, tl.sum(totals, 0), tl.sum(weighted, 0)


@triton.jit
def divergence(row, anchor_row, largest, log_total, is_forward, how, CAPPED: tl.constexpr, BLOCK: tl.constexpr):
    """KL in the direction of the loss, and the reference's largest logit and log sum, y its logits.

    Either KL is a mean of y - z with the difference of the log sums, weighted by the reference or by the policy.
    """
    vocab, inverse_temperature = how[0], how[2]
    anchor_largest = tl.full((), -float("inf"), tl.float32)
    anchor_totals = tl.zeros((BLOCK,), tl.float32)
    totals = tl.zeros((BLOCK,), tl.float32)
    odds = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, vocab, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        logits = block(row, columns, how, CAPPED)[0]
        anchors = block(anchor_row, columns, how, CAPPED)[0]
        new = tl.maximum(anchor_largest, tl.max(anchors, 0))
        step = shift_by(anchor_largest, new, inverse_temperature)
        z, y = shifted(logits, largest, inverse_temperature), shifted(anchors, new, inverse_temperature)
        anchor_totals = anchor_totals * tl.exp(step) + tl.exp(y)
        weights = tl.exp(tl.where(is_forward, y, z))
        factor = tl.where(is_forward, tl.exp(step), 1.0)
        odds = (odds + step * totals) * factor + weights * (y - z)
        totals = totals * factor + weights
        anchor_largest = new
    log_anchors = tl.log(tl.sum(anchor_totals, 0))
    mean = tl.sum(odds, 0) / tl.sum(totals, 0) + (log_total - log_anchors)
    return tl.where(is_forward, mean, -mean), anchor_largest, log_anchors


@triton.jit
def _clamped(log_ratio):
    return tl.where(log_ratio > CLAMP, CLAMP, tl.where(log_ratio < -CLAMP, -CLAMP, log_ratio))


@triton.jit
def _expm1(x):
    """e^x - 1 with all its digits: for small x the rounding of e^x divides out."""
    power = tl.exp(x)
    return tl.where(power == 1.0, x, (power - 1.0) * (x / tl.log(tl.where(power == 1.0, 2.0, power))))


@triton.jit
def loss_slopes(logprob, column, total, kl, loss):
    """`terms.loss_slopes` of a row: derivatives in logprob, entropy and exact KL.

    `loss` is (1 - clip_low, 1 + clip_high, dual_clip, kl_coef, entropy_coef), `column` where the row's numbers begin.
    """
    lowest, highest, dual_clip, kl_coef, entropy_coef = loss
    policy_weight, ptx_weight = tl.load(column + 4 * total), tl.load(column + 5 * total)
    response = policy_weight != 0
    log_ratio = tl.where(response, logprob - tl.load(column + total), 0.0)
    reference_log_ratio = tl.where(response, tl.load(column + 2 * total) - logprob, 0.0)
    advantage = tl.where(response, tl.load(column + 3 * total), 0.0)
    ratio, is_clamped = tl.exp(_clamped(log_ratio)), tl.abs(log_ratio) > CLAMP
    held = is_clamped | ((advantage > 0) & (ratio > highest))
    held = held | ((advantage < 0) & ((ratio < lowest) | (ratio > dual_clip)))
    slope = tl.where(held, 0.0, -advantage * ratio)
    r, r_is_clamped = _clamped(reference_log_ratio), tl.abs(reference_log_ratio) > CLAMP
    growth = _expm1(r)
    sampled = tl.where(kl == K1, 1.0, tl.where(kl == K2, -r, tl.where(kl == K3_WEIGHTED, -ratio * growth, -growth)))
    sampled = tl.where(r_is_clamped, 0.0, sampled)
    # The product rule: k3 is weighted by the ratio.  Where neither is clamped, e^r cancels.
    sampled += tl.where((kl == K3_WEIGHTED) & (is_clamped == 0), ratio * (growth - r), 0.0)
    sampled = tl.where((kl == K3_WEIGHTED) & (is_clamped == 0) & (r_is_clamped == 0), -ratio * r, sampled)
    slope += tl.where((kl >= K1) & (kl <= K3_WEIGHTED), kl_coef * sampled, 0.0)
    return (
        policy_weight * slope - ptx_weight,
        -entropy_coef * policy_weight,
        tl.where(kl >= EXACT, kl_coef * policy_weight, 0.0),
    )
