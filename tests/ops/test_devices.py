"""What the plain-torch implementation does away from the CPU, as far as that can be seen without a GPU.

A tensor on "meta" has a shape and no contents: whatever would have to wait for a device's answer raises there.
"""

import dataclasses

import pytest
import torch

from destruct.ops import chunked
from destruct.ops.rows import LogitMap, LossRows, ReferenceStates
from tests.ops.problems import FULL, bf16, f32, problem


def elsewhere(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to("meta")


@pytest.mark.parametrize("dtype", [f32, bf16])
@pytest.mark.parametrize("kind", FULL)
def test_nothing_waits_for_the_device(kind, dtype):
    hidden, weight, rows, states = problem(40, 123, 31, dtype)
    rows = LossRows(**{f.name: elsewhere(getattr(rows, f.name)) for f in dataclasses.fields(LossRows)})
    anchor = ReferenceStates(elsewhere(states.hidden), elsewhere(states.weight)) if FULL[kind].exact_kl else None
    hidden, weight = elsewhere(hidden).requires_grad_(), elsewhere(weight).requires_grad_()
    out = chunked.policy_loss(hidden, weight, rows, FULL[kind], anchor, LogitMap(1.0, 30.0), chunk_rows=16)
    out.loss.backward()
    assert hidden.grad.shape == hidden.shape and weight.grad.shape == weight.shape
    scores = chunked.score(hidden, weight, rows.score_rows(), chunk_rows=16)
    sum(score.sum() for score in scores).backward()


def test_what_would_wait_raises_there():
    there = torch.ones(3, device="meta")
    for wait in (there.nonzero, lambda: bool(there.any()), lambda: there.sum().item(), lambda: there[there > 0]):
        with pytest.raises((NotImplementedError, RuntimeError)):
            wait()
