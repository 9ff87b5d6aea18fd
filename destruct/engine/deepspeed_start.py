"""What DeepSpeed 0.19.8 does at its start that nothing here needs."""

import gc
import importlib
from unittest.mock import patch

import deepspeed
from deepspeed.runtime import compiler


def leave_out() -> None:
    """Keep DeepSpeed from it, in this process."""
    # A shared-memory all-reduce for CPU inference, compiled for 30 s at the first start on a machine; gloo and NCCL do
    # that work here.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # Every engine imports the Muon optimizer to see that its own is another, and that asks torch.compile for kernels,
    # which imports the compiler: 1.4 s.  The config refuses Muon.
    with patch.object(compiler, "compile", lambda: lambda function: function):
        importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    # Every engine collects garbage: 0.26 s over all that was imported, which is never garbage.
    gc.freeze()
