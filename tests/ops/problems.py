"""Random problems for the fused ops, and how far two answers are apart."""

import dataclasses
from typing import NamedTuple

import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from destruct.ops import reference
from destruct.ops.rows import PRODUCTS, LossCoefficients, LossRows, ReferenceStates, ScoreRows

f64, f32, bf16 = torch.float64, torch.float32, torch.bfloat16
PLAIN = LossCoefficients(clip_low=0.2, clip_high=0.2, kl_coef=0.0, kl="none", entropy_coef=0.0)
FULL = {
    "none": dataclasses.replace(PLAIN, clip_high=0.28, dual_clip=1.4),
    "k1": dataclasses.replace(PLAIN, kl_coef=0.1, kl="k1"),
    "k2": dataclasses.replace(PLAIN, kl_coef=0.1, kl="k2", entropy_coef=0.02),
    "k3": dataclasses.replace(PLAIN, kl_coef=0.1, kl="k3", entropy_coef=-0.02, dual_clip=1.4),
    "k3_weighted": dataclasses.replace(PLAIN, kl_coef=0.1, kl="k3_weighted", clip_high=0.28),
    "exact": dataclasses.replace(PLAIN, kl_coef=0.1, kl="exact"),
    "exact, entropy": dataclasses.replace(PLAIN, kl_coef=0.1, kl="exact", entropy_coef=0.02),
    "exact_forward": dataclasses.replace(PLAIN, kl_coef=0.1, kl="exact_forward", dual_clip=1.4),
    "exact_forward, entropy": dataclasses.replace(PLAIN, kl_coef=0.1, kl="exact_forward", entropy_coef=0.02),
}


class Tolerance(NamedTuple):
    """Largest error against float64 on the same inputs: absolute in nats or reward units, gradients relative L2."""

    loss: float
    row: float
    gradient: float


TOLERANCES = {
    f64: Tolerance(1e-12, 1e-12, 1e-12),
    f32: Tolerance(1e-6, 1e-5, 1e-5),
    # Logits rounded to bfloat16, by 2^-9 of up to 8, but for the targets'.
    bf16: Tolerance(5e-3, 3e-2, 1e-2),
}


class Problem(NamedTuple):
    """What `policy_loss` takes, and a reference for its exact KL."""

    hidden: torch.Tensor
    weight: torch.Tensor
    rows: LossRows
    states: ReferenceStates

    def reference_for(self, coefficients: LossCoefficients) -> ReferenceStates | None:
        return self.states if coefficients.exact_kl else None

    def double(self) -> "Problem":
        states = ReferenceStates(self.states.hidden.double(), self.states.weight.double())
        return Problem(self.hidden.double(), self.weight.double(), self.rows, states)


def problem(count, vocab, width, dtype=f64, seed=0, logit_map=PRODUCTS) -> Problem:
    """Every 4th row PTX, every 7th idle, log ratios well inside or well outside the clip, a reference of another width.

    The reference's states end with the last response row.
    """
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(count, width, generator=generator, dtype=f64).to(dtype)
    weight = (torch.randn(vocab, width, generator=generator, dtype=f64) * 1.6 / width**0.5).to(dtype)
    index = torch.arange(count)
    targets = torch.randint(vocab, (count,), generator=generator)
    temperature = torch.where(index % 4 == 3, 1.0, torch.tensor(0.7, dtype=f64))
    scored = ScoreRows(targets, temperature)
    logprobs = reference.score(hidden.double(), weight.double(), scored, logit_map).logprobs
    advantages = torch.randn(count, generator=generator, dtype=f64)
    ptx = (index % 4 == 3).double()
    response = ((index % 4 != 3) & (index % 7 != 6)).double()
    rows = LossRows(
        targets=targets,
        temperature=temperature,
        old_logprobs=logprobs - torch.tensor([-0.5, -0.1, 0.1, 0.5], dtype=f64)[index * 5 % 7 % 4],
        reference_logprobs=logprobs + 0.3 * torch.randn(count, generator=generator, dtype=f64),
        advantages=advantages + 0.1 * advantages.sign(),
        policy_weight=response / response.sum().clamp(min=1),
        ptx_weight=0.5 * ptx / ptx.sum().clamp(min=1),
    )
    anchored = int(response.nonzero().max()) + 1 if count else 0
    other = torch.randn(anchored, width + 3, generator=generator, dtype=f64).to(dtype)
    head = (torch.randn(vocab, width + 3, generator=generator, dtype=f64) * 1.6 / width**0.5).to(dtype)
    return Problem(hidden, weight, rows, ReferenceStates(other, head))


def differentiate(op, hidden, weight, rows, coefficients, states=None, **options):
    """(output, d_hidden, d_weight)."""
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    out = op(hidden, weight, rows, coefficients, states, **options)
    out.loss.backward()
    return out, hidden.grad, weight.grad


def solve(op, given: Problem, coefficients, **options):
    """`differentiate`, with the reference where the coefficients ask for it."""
    hidden, weight, rows, _ = given
    return differentiate(op, hidden, weight, rows, coefficients, given.reference_for(coefficients), **options)


def gap(got, want):
    """Relative L2 distance; absolute where the right answer is 0."""
    distance, size = (got.double() - want.double()).norm(), want.double().norm()
    return float(distance / size if size > 0 else distance)


def cross_entropy(hidden, weight, rows, temperature=1.0):
    return F.cross_entropy(hidden @ weight.t() / temperature, rows.targets, reduction="none")


class Census(TorchDispatchMode):
    """Largest result of any operation, in elements, and the shapes (n, k, m) of the matrix products."""

    def __init__(self):
        super().__init__()
        self.largest, self.products = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        results = out if isinstance(out, (tuple, list)) else (out,)
        self.largest = max([self.largest, *(r.numel() for r in results if isinstance(r, torch.Tensor))])
        if "mm" in str(func):
            left, right = [a for a in args if isinstance(a, torch.Tensor)][-2:]
            self.products.append((*left.shape, right.shape[1]))
        return out
