#!/usr/bin/env bash
# On a machine with one GPU, from the repository's root: the Triton kernels' cases first, then the benchmark's shapes.
# It needs torch, triton and pytest; liger-kernel, where it is installed, is measured too.
set -euo pipefail

PYTHONPATH=. python -m pytest -q --noconftest tests/ops/triton_cases.py
for rows in 8192 16384; do
    for hidden in 2048 4096; do
        PYTHONPATH=. python -m bench.fused_loss --device cuda --rows "$rows" --hidden "$hidden" --vocab 128256 \
            --repeats 11 --without trl verl "$@"
    done
done
