"""The Triton implementation: its cases under the interpreter, its kernels compiled for Hopper, its place in the table.

Triton decides when it is first imported whether it interprets, so what runs a kernel is a process of its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from destruct.ops.dispatch import implementation
from destruct.ops.sums import merged, sums_of

ROOT = Path(__file__).resolve().parents[2]
HOPPER_SHARED = 227 * 1024
"""Bytes of shared memory that a program can have."""


def run(arguments: list[str], **variables: str) -> str:
    """What a Python process of the project prints, with these environment variables."""
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment = clean | {"PYTHONPATH": str(ROOT)} | variables
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_its_cases_pass_under_the_interpreter():
    pytest.importorskip("triton")
    assert " passed" in run(["-m", "pytest", "-q", "tests/ops/triton_cases.py"], TRITON_INTERPRET="1")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_its_cases_pass_on_the_gpu():
    assert " passed" in run(["-m", "pytest", "-q", "tests/ops/triton_cases.py"])


@pytest.mark.slow
def test_every_kernel_compiles_for_hopper_as_it_is_launched(tmp_path):
    """For both dtypes, with and without a cap: 3 binaries, whatever the loss, its coefficients and the rows are.

    So old logprobs and those of any loss come from one binary, and nothing is compiled anew when a coefficient moves.
    """
    pytest.importorskip("triton")
    printed = run(["tests/ops/triton_compile_worker.py"], TRITON_CACHE_DIR=str(tmp_path))
    binaries = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    found = sorted((binary["dtype"], binary["capped"], binary["kernel"]) for binary in binaries)
    three = ("row_kernel", "row_kernel", "score_kernel")
    assert found == [
        (f"torch.{d}", c, kernel) for d in ("bfloat16", "float32") for c in (False, True) for kernel in three
    ]
    for binary in binaries:
        assert binary["shared"] <= HOPPER_SHARED, binary
        # At most four numbers that do not fit into registers, in binaries that the hottest path does not use.
        hottest = binary["dtype"] == "torch.bfloat16" and not binary["capped"]
        assert binary["stack"] <= (0 if hottest else 16), binary
        if binary["kernel"] == "row_kernel":
            # Two programs a multiprocessor; loads of 16 bytes although V is odd, but for a row's own numbers.
            assert binary["registers"] <= 64 and binary["narrow_loads"] <= 8, binary
        else:
            assert binary["wgmma"] == (binary["dtype"] == "torch.bfloat16"), binary


@pytest.mark.slow
def test_it_is_imported_only_when_it_is_asked_for_and_says_what_it_lacks():
    """A GPU, or its package; nothing else here may import triton."""
    pytest.importorskip("triton")
    code = """
import sys
import torch
import destruct.ops.head
from destruct.ops.dispatch import implementation
from destruct.ops.rows import ScoreRows
implementation("chunked"), implementation("reference")
assert "triton" not in sys.modules
rows = ScoreRows(torch.zeros(2, dtype=torch.int64), torch.ones(2))
for attempt in range(2):
    try:
        implementation("triton").score(torch.zeros(2, 3), torch.zeros(5, 3), rows)
    except ValueError as error:
        print(error)
    for name in [name for name in sys.modules if name.startswith(("triton", "destruct.ops.fused_triton"))]:
        del sys.modules[name]
    sys.modules["triton"] = None
"""
    assert run(["-c", code]).splitlines() == [
        "hidden is on cpu; 'triton' needs a GPU, so use 'chunked'",
        "implementation is 'triton'; the package triton is not installed, so use 'chunked'",
    ]


def test_chunk_rows_depend_on_the_model_alone_and_fit_the_budget():
    pytest.importorskip("triton")
    rows_per_chunk = implementation("triton").rows_per_chunk
    assert rows_per_chunk(128256, torch.bfloat16, None) == 1280  # 1280 x 128256 x (4 + 2) bytes = 939 MiB
    assert rows_per_chunk(128256, torch.float32, None) == 1024
    assert rows_per_chunk(32000, torch.bfloat16, None) == 4096
    assert rows_per_chunk(128256, torch.bfloat16, 256) == 256
    assert rows_per_chunk(10**7, torch.bfloat16, None) == 128
    assert implementation("chunked").rows_per_chunk(32000, torch.bfloat16, None) == 1024
    assert implementation("reference").rows_per_chunk(32000, torch.bfloat16, None) >= 2**31


def test_sums_that_lie_side_by_side_merge_as_they_do_one_by_one():
    """The third part has nothing but columns of -inf, the fourth no column at all."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 12, generator=generator, dtype=torch.float64) * 30
    logits[:, 8:] = -torch.inf
    targets = torch.tensor([0, 3, 5, 7, 9])
    parts = [sums_of(logits[:, first : first + 4], targets, first) for first in (0, 4)]
    nothing = parts[0]._replace(
        largest=torch.full((5,), -torch.inf), total=torch.zeros(5), weighted=torch.zeros(5), target=logits[:, 9]
    )
    parts += [nothing, nothing]
    stacked = type(nothing)(*(torch.stack(sums) for sums in zip(*parts, strict=True)))
    torch.testing.assert_close(stacked.over_parts(), merged(parts), rtol=1e-12, atol=1e-12)
