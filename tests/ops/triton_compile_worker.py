"""Compiles the kernels for Hopper, without a GPU, as the ops launch them; prints a JSON line about each binary.

python tests/ops/triton_compile_worker.py
"""

import json
import re
import subprocess
import tempfile

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from destruct.ops import fused_triton
from destruct.ops.rows import LogitMap, ScoreRows
from tests.ops.problems import FULL, bf16, f32, problem, solve


class Hopper:
    """As much of a driver as it takes to compile."""

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def resources(cubin: bytes) -> dict[str, int]:
    """Registers, and bytes of stack (where registers are spilled to) of a binary."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    fields = dict(field.split(":") for field in done.stdout.split() if field.count(":") == 1 and field[-1] != ":")
    return {"registers": int(fields["REG"]), "stack": int(fields["STACK"])}


def launch(dtype: torch.dtype, soft_cap: float | None, counts: tuple[int, ...]) -> None:
    """Every way into the kernels, on several numbers of rows; nothing runs, so the results mean nothing."""
    logit_map = LogitMap(soft_cap=soft_cap)
    for count in counts:
        given = problem(count, 2067, 32, dtype)
        scored = ScoreRows(given.rows.targets, given.rows.temperature)
        for coefficients in FULL.values():
            solve(fused_triton.policy_loss, given, coefficients, logit_map=logit_map, chunk_rows=16)
            with torch.no_grad():
                states = given.reference_for(coefficients)
                fused_triton.policy_loss(*given[:3], coefficients, states, logit_map)
        with torch.no_grad():
            fused_triton.score(*given[:2], given.rows.score_rows(), logit_map)
            fused_triton.score(*given[:2], scored, logit_map)
            # A vocabulary of one tile, by the same binary.
            few = ScoreRows(given.rows.targets % 50, given.rows.temperature)
            fused_triton.score(given.hidden, given.weight[:50], few, logit_map)
        inputs = given.hidden.requires_grad_(), given.weight.requires_grad_()
        sum(x.sum() for x in fused_triton.score(*inputs, scored, logit_map)).backward()


def main() -> None:
    triton.runtime.driver.set_active(Hopper())
    compiled, compile_and_run = {}, JITFunction.run

    def compile_only(self, *args, **options):
        kernel = compile_and_run(self, *args, **{**options, "warmup": True})
        compiled[kernel.hash] = self.fn.__name__, kernel

    JITFunction.run = compile_only
    # The kernels are compiled all the same: this alone lets tensors on the CPU in.
    triton.knobs.runtime.interpret = True
    for dtype in (bf16, f32):
        for soft_cap in (None, 30.0):
            compiled.clear()
            launch(dtype, soft_cap, (1, 7, 32) if dtype == bf16 and soft_cap is None else (7,))
            for name, kernel in compiled.values():
                about = {"kernel": name, "dtype": str(dtype), "capped": soft_cap is not None}
                about |= {"shared": kernel.metadata.shared, "wgmma": "wgmma.mma_async" in kernel.asm["ptx"]}
                about["narrow_loads"] = len(re.findall(r"ld\.global(?:\.L\S+)?\.b32", kernel.asm["ptx"]))
                print(json.dumps(about | resources(kernel.asm["cubin"])))


if __name__ == "__main__":
    main()
