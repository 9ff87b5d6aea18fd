#!/usr/bin/env bash
# On a machine with one GPU, from the repository's root: the Triton kernels' cases, the engines against plain torch, a run
# repeated and resumed, Llama-3.2-1B's shape (75 GiB on disk), then the fused loss.
# It needs what destruct needs, and pytest; liger-kernel, where it is installed, is measured too.
set -euo pipefail
export PYTHONPATH=".${PYTHONPATH:+:$PYTHONPATH}"

python -m pytest -q --noconftest tests/ops/triton_cases.py
python -m pytest -q tests/distributed/test_engines.py
python -m bench.gpu_path small
python -m bench.gpu_path llama-1b
for rows in 8192 16384; do
    for hidden in 2048 4096; do
        python -m bench.fused_loss --device cuda --rows "$rows" --hidden "$hidden" --vocab 128256 \
            --repeats 11 --without trl verl "$@"
    done
done
