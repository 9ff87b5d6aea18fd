"""What the fused loss is timed on, and what float64 says about it.

Legend: N rows, H hidden width, V vocabulary, n <= N rows that gradients are checked on.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from destruct.ops.rows import LossCoefficients, LossRows
from destruct.ops.terms import combine

COEFFICIENTS = LossCoefficients(clip_low=0.2, clip_high=0.2, kl_coef=0.05, kl="k2", entropy_coef=0.01)
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
LOGIT_STD, NOISE, EDGE, SEED = 1.6, 0.1, 0.03, 11
CHECKED_ROWS = 1024
"""Their float64 logits take 1 GiB at V = 128256."""

_BLOCK_BYTES = 128 * 2**20
"""Of a part in float64: of the head, or of some rows of logits."""


@dataclass(frozen=True, slots=True)
class Case:
    """Inputs of one loss.  No row is idle: where the clip holds a row, its KL and entropy still have a slope."""

    hidden: Tensor  # (N, H) leaf that asks for a gradient
    weight: Tensor  # (V, H) leaf that asks for a gradient, same dtype
    rows: LossRows  # N response rows at temperature 1
    exact_logprobs: Tensor  # (N,) float64, nats

    def first(self, count: int) -> "Case":
        """The loss of the first rows alone, with leaves of its own."""
        rows = self.rows.part(0, count)
        rows = replace(rows, policy_weight=torch.full_like(rows.policy_weight, 1 / count))
        hidden, weight = (t.detach().requires_grad_() for t in (self.hidden[:count], self.weight))
        return Case(hidden, weight, rows, self.exact_logprobs[:count])


def make_case(device: str, dtype: torch.dtype, shape: tuple[int, int, int], exact: bool = True) -> Case:
    """Draw a case: hidden states of variance 1, logits of standard deviation 1.6.

    Args:
        device: "cpu" or "cuda".
        dtype: of hidden states and head.
        shape: N, H and V.
        exact: whether old and reference logprobs lie 0.1 nats around the float64 logprobs; else around -log V, which
            takes no time and does for measuring memory.
    """
    count, width, vocab = shape
    generator = torch.Generator().manual_seed(SEED)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    hidden = normal(count, width).to(device, dtype)
    weight = normal(vocab, width).mul_(LOGIT_STD / width**0.5).to(device, dtype)
    targets = torch.randint(vocab, (count,), generator=generator).to(device)
    old, reference, advantages = (normal(count).to(device) for _ in range(3))
    if exact:
        logprobs = exact_logprobs(hidden, weight, targets)
    else:
        logprobs = torch.full((count,), -float(torch.tensor(vocab).log()), dtype=torch.float64, device=device)
    rows = LossRows(
        targets=targets,
        temperature=torch.ones_like(advantages),
        old_logprobs=(logprobs + _off_the_edges(NOISE * old)).float(),
        reference_logprobs=(logprobs + NOISE * reference).float(),
        advantages=advantages,
        policy_weight=torch.full_like(advantages, 1 / count),
        ptx_weight=torch.zeros_like(advantages),
    )
    return Case(hidden.requires_grad_(), weight.requires_grad_(), rows, logprobs)


def _off_the_edges(noise: Tensor) -> Tensor:
    """Noise (N,) of the old logprobs, nats, but 0.1 where it puts the ratio within 0.03 of an edge of the clip.

    There the error of one logprob decides whether a row has a gradient at all, which says nothing about how exactly
    gradients are computed.
    """
    low, high = (-(1 + side).log() for side in noise.new_tensor([-COEFFICIENTS.clip_low, COEFFICIENTS.clip_high]))
    near = ((noise - low).abs() < EDGE) | ((noise - high).abs() < EDGE)
    return torch.where(near, NOISE * noise.sign(), noise)


def exact_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """(N,) float64 logprobs of targets (N,), from the products of hidden (N, H) and weight (V, H) in float64."""
    parts = []
    for chunk, of_chunk in zip(hidden.detach().split(CHECKED_ROWS), targets.split(CHECKED_ROWS), strict=True):
        logits = _exact_logits(chunk, weight.detach())
        for block in _blocks(len(chunk), logits.shape[1]):
            parts.append(logits[block].log_softmax(1).gather(1, of_chunk[block, None]).squeeze(1))
    return torch.cat(parts)


def plain_logprobs(case: Case) -> Tensor:
    """(N,) logprobs from logits in the case's own dtype, normalised in float32: what full logits give at best."""
    hidden, weight, targets, parts = case.hidden.detach(), case.weight.detach(), case.rows.targets, []
    for block in _blocks(len(hidden), len(weight)):
        logits = torch.mm(hidden[block], weight.t()).float()
        parts.append(logits.log_softmax(1).gather(1, targets[block, None]).squeeze(1))
    return torch.cat(parts)


def gradient_errors(case: Case, candidates: list[tuple[Tensor, Tensor]]) -> list[float]:
    """The larger relative L2 error of each candidate's two gradients against float64.

        D_j = u (1[j = y] - p_j) - e p_j (log p_j + E),   dhidden = D weight,   dweight = D^T hidden

    with u and e, the slopes in logprob and entropy, by autograd through `combine`.

    Args:
        case: n rows, n V float64 numbers of which fit into memory.
        candidates: gradients of hidden (n, H) and of weight (V, H), any dtype.
    """
    hidden, weight = case.hidden.detach(), case.weight.detach()
    slopes = _slopes_in_place(_exact_logits(hidden, weight), case)
    hidden, d_hidden = hidden.double(), torch.zeros_like(hidden, dtype=torch.float64)
    norm, errors = 0.0, [0.0] * len(candidates)
    for block in _blocks(*weight.shape):
        d_hidden += slopes[:, block] @ weight[block].double()
        d_weight = slopes[:, block].t() @ hidden
        norm += float(d_weight.square().sum())
        for at, (_, got) in enumerate(candidates):
            errors[at] += float((got[block].double() - d_weight).square().sum())
    of_hidden = [float((got.double() - d_hidden).norm() / d_hidden.norm()) for got, _ in candidates]
    return [max(first, (second / norm) ** 0.5) for first, second in zip(of_hidden, errors, strict=True)]


def _slopes_in_place(logits: Tensor, case: Case) -> Tensor:
    """Turn float64 logits (n, V) into the gradient with respect to them."""
    targets, lows = case.rows.targets[:, None], list(_blocks(*logits.shape))
    said = []
    for block in lows:
        log_p = torch.log_softmax(logits[block], 1, out=logits[block])
        said.append(torch.stack([log_p.gather(1, targets[block]).squeeze(1), -(log_p.exp() * log_p).sum(1)]))
    logprobs, entropy = (column.requires_grad_() for column in torch.cat(said, 1))
    loss, _, _ = combine(logprobs, entropy, torch.zeros_like(logprobs), case.rows, COEFFICIENTS)
    u, e = (slope[:, None] for slope in torch.autograd.grad(loss, (logprobs, entropy)))
    for block in lows:
        log_p = logits[block]
        p = log_p.exp()
        log_p.add_(entropy.detach()[block, None]).mul_(-e[block]).sub_(u[block]).mul_(p)
        log_p.scatter_add_(1, targets[block], u[block])
    return logits


def _exact_logits(hidden: Tensor, weight: Tensor) -> Tensor:
    logits = torch.empty(len(hidden), len(weight), dtype=torch.float64, device=hidden.device)
    hidden = hidden.double()
    for block in _blocks(*weight.shape):
        logits[:, block] = hidden @ weight[block].double().t()
    return logits


def _blocks(count: int, width: int) -> Iterator[slice]:
    """Parts of `count` rows of `width` float64 numbers, each of 128 MiB or one row."""
    step = max(1, _BLOCK_BYTES // (8 * width))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))
