"""bfloat16 led through float32: within one rounding of float64, other dtypes as before, and only where it is wanted."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from destruct.ops import bfloat16_cpu

ROUNDING = 2.0**-8
"""Half the distance of two neighbours in bfloat16, of the lower one."""

LEFT, RIGHT, MATRIX = (3, 5), (5, 4), (3, 4)
OPERATIONS = {
    "mm": (torch.mm, [LEFT, RIGHT]),
    "addmm": (lambda *parts, **out: torch.addmm(*parts, beta=0.5, alpha=2.0, **out), [MATRIX, LEFT, RIGHT]),
    "a bias": (torch.addmm, [(4,), LEFT, RIGHT]),
    "bmm": (torch.bmm, [(2, *LEFT), (2, *RIGHT)]),
    "baddbmm": (
        lambda *parts, **out: torch.baddbmm(*parts, alpha=0.25, **out),
        [(2, *MATRIX), (2, *LEFT), (2, *RIGHT)],
    ),
}


@pytest.fixture
def led():
    library = bfloat16_cpu.lead_through_float32.__wrapped__()
    yield
    library._destroy()


def tensors(shapes: list[tuple[int, ...]], dtype: torch.dtype, **settings: bool) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]
    return [tensor.to(dtype).requires_grad_(**settings) if settings else tensor.to(dtype) for tensor in made]


def assert_rounded_once(got: Tensor, want: Tensor) -> None:
    """Of float32's own error in these few terms there is 1e-5 at most."""
    assert got.dtype is torch.bfloat16
    torch.testing.assert_close(got.double(), want, rtol=ROUNDING, atol=1e-5)


def casts_in(operation: str) -> bool:
    """Whether bfloat16 is cast on its way through an operation, of the process as it is."""
    compute, shapes = OPERATIONS[operation]
    parts = tensors(shapes, torch.bfloat16)
    with torch.profiler.profile() as profile:
        compute(*parts)
    return "aten::_to_copy" in {event.key for event in profile.key_averages()}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_product_is_rounded_once(led, operation):
    compute, shapes = OPERATIONS[operation]
    assert_rounded_once(compute(*tensors(shapes, torch.bfloat16)), compute(*tensors(shapes, torch.float64)))
    assert casts_in(operation)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_product_is_written_where_the_caller_wants_it(led, operation):
    compute, shapes = OPERATIONS[operation]
    want = compute(*tensors(shapes, torch.float64))
    wider = torch.full((*want.shape[:-1], 7), 9.0).bfloat16()
    out = wider[..., 1:5]
    assert compute(*tensors(shapes, torch.bfloat16), out=out) is out
    assert_rounded_once(out, want)
    assert (wider[..., :1] == 9).all() and (wider[..., 5:] == 9).all()
    empty = torch.empty(0, dtype=torch.bfloat16)
    assert torch.equal(compute(*tensors(shapes, torch.bfloat16), out=empty), out)


def test_a_product_that_is_added_to_its_own_place(led):
    total, left, right = tensors([MATRIX, LEFT, RIGHT], torch.bfloat16)
    want = 0.5 * total.double() + left.double() @ right.double()
    torch.addmm(total, left, right, beta=0.5, out=total)
    assert_rounded_once(total, want)


def test_gradients_of_a_layer_are_rounded_once(led):
    shapes = [(2, 3, 5), (4, 5), (4,)]
    exact, rounded = (
        tensors(shapes, torch.float64, requires_grad=True),
        tensors(shapes, torch.bfloat16, requires_grad=True),
    )
    for parts in (exact, rounded):
        F.linear(*parts).backward(torch.ones(2, 3, 4, dtype=parts[0].dtype))
    for got, want in zip(rounded[:2], exact[:2], strict=True):
        assert_rounded_once(got.grad, want.grad)


@pytest.mark.parametrize("masked", [False, True], ids=["causal", "bias"])
def test_attentions_gradients_are_those_of_the_formula(led, masked):
    """They are made from its output, which has been rounded: their errors are some roundings of the largest."""
    shapes = [(2, 3, 6, 8)] * 3
    bias = tensors([(6, 6)], torch.bfloat16)[0] if masked else None
    causal = torch.full((6, 6), float("-inf"), dtype=torch.float64).triu(1)
    q, k, v = exact = tensors(shapes, torch.float64, requires_grad=True)
    want = torch.softmax(q @ k.mT / 8**0.5 + (bias.double() if masked else causal), -1) @ v
    rounded = tensors(shapes, torch.bfloat16, requires_grad=True)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
        got = F.scaled_dot_product_attention(*rounded, attn_mask=bias, is_causal=not masked)
    want.backward(torch.ones_like(want))
    with torch.profiler.profile() as profile:
        got.backward(torch.ones_like(got))
    assert "aten::_to_copy" in {event.key for event in profile.key_averages()}
    for theirs, ours in zip(exact, rounded, strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=ROUNDING, atol=4 * ROUNDING)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.int64])
def test_other_dtypes_have_the_bits_they_had(dtype):
    operations = [(compute, tensors(shapes, dtype)) for compute, shapes in (OPERATIONS["mm"], OPERATIONS["bmm"])]
    before = [compute(*parts) for compute, parts in operations]
    library = bfloat16_cpu.lead_through_float32.__wrapped__()
    assert all(torch.equal(compute(*parts), was) for (compute, parts), was in zip(operations, before, strict=True))
    with pytest.raises(RuntimeError, match="dtype"):
        torch.mm(*tensors([LEFT, RIGHT], torch.bfloat16), out=torch.empty(MATRIX, dtype=dtype))
    library._destroy()


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="not Linux")
def test_it_is_slow_where_the_processor_has_no_avx_512():
    flags = set(Path("/proc/cpuinfo").read_text().split())
    assert bfloat16_cpu.is_slow() is not ({"avx512bw", "avx512vl", "avx512dq"} <= flags)


@pytest.mark.parametrize("supported", [True, False])
def test_a_process_leads_its_products_only_where_onednn_refuses_them(supported):
    """What a run does before anything else, in a process whose oneDNN says this or that."""
    code = (
        f"import torch; torch.ops.mkldnn._is_mkldnn_bf16_supported = lambda: {supported}\n"
        "from destruct.engine import topology; topology.own_device(); topology.own_device()\n"
        "from tests.ops.test_bfloat16_cpu import casts_in; print(casts_in('mm'))"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == (f"{not supported}\n", 0), done.stderr
