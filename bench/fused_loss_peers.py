"""Other projects' fused losses on the same rows, each at its own defaults and on what it can compute.

None is a dependency: `bench/requirements.txt` pins what was compared.  A peer that is absent, or that fails, is left
out with the reason.
"""

import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from bench.fused_loss_case import COEFFICIENTS, Case
from destruct.ops.terms import combine

TRL_COLUMNS = 8192
"""Columns of the vocabulary at a time, as TRL's own trainer asks for."""

Step = Callable[[], object]


def liger(case: Case) -> tuple[Step, str]:
    """Liger-Kernel's chunked GRPO loss.

    It takes one advantage per sequence, so each row is a sequence of one token, all in one of its chunks; inside, it
    still goes through parts of 2048 rows by 4096 columns.
    """
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    rows, c = case.rows, COEFFICIENTS
    loss_of = LigerFusedLinearGRPOLoss(
        beta=c.kl_coef,
        compiled=case.hidden.is_cuda,  # a compiler on the CPU is not always there, and the products stay outside it
        chunk_size=len(rows.targets),
        epsilon_low=c.clip_low,
        epsilon_high=c.clip_high,
        loss_type="bnpo",
    )
    columns = (rows.targets, torch.ones_like(rows.targets), rows.reference_logprobs, rows.old_logprobs)
    targets, mask, reference, old = (column[:, None] for column in columns)

    def step() -> None:
        case.hidden.grad = case.weight.grad = None
        loss, _ = loss_of(
            case.hidden[:, None],
            case.weight,
            targets,
            mask,
            rows.advantages,
            ref_per_token_logps=reference,
            old_per_token_logps=old,
        )
        loss.backward()

    return step, f"liger-kernel {_version('liger-kernel')}: clipped loss and k3 KL; no k2, no entropy"


def trl(case: Case) -> tuple[Step, str]:
    """TRL's chunked logprobs and entropy with the recomputing backward of the logprobs, and the PPO loss on top.

    Its backward does not read the gradient of the entropy, so the bonus is in the value alone.
    """
    from trl.trainer.utils import _ChunkedLogProbFunction

    def scores() -> tuple[Tensor, Tensor]:
        return _ChunkedLogProbFunction.apply(case.hidden, case.weight, case.rows.targets, 1.0, TRL_COLUMNS)

    return _ppo_step(
        case, scores
    ), f"trl {_version('trl')}: logprobs and entropy, the latter without its gradient; the same loss on top"


def verl(case: Case) -> tuple[Step, str]:
    """verl's fused logprobs and entropy with their recomputing backward, and the PPO loss on top."""
    linear = _module_of_file("verl", "verl/utils/experimental/torch_functional.py").FusedLinearForPPO()

    def scores() -> tuple[Tensor, Tensor]:
        return linear(case.hidden, case.weight, case.rows.targets)

    return _ppo_step(case, scores), f"verl {_version('verl')}: logprobs and entropy, the same loss on top"


PEERS: dict[str, Callable[[Case], tuple[Step, str]]] = {"liger": liger, "trl": trl, "verl": verl}


def _ppo_step(case: Case, scores: Callable[[], tuple[Tensor, Tensor]]) -> Step:
    def step() -> None:
        case.hidden.grad = case.weight.grad = None
        logprobs, entropy = (column.float() for column in scores())
        combine(logprobs, entropy, torch.zeros_like(logprobs), case.rows, COEFFICIENTS)[0].backward()

    return step


def _version(distribution: str) -> str:
    return importlib.metadata.version(distribution)


def _module_of_file(distribution: str, path: str) -> ModuleType:
    """One file of an installed distribution as a module, without its package, which would need far more.

    Raises:
        ImportError: the distribution is not installed, or has no such file.
    """
    try:
        files = [file for file in importlib.metadata.files(distribution) or () if file.as_posix() == path]
    except importlib.metadata.PackageNotFoundError as error:
        raise ImportError(f"{distribution} is not installed") from error
    if not files:
        raise ImportError(f"{distribution} {_version(distribution)} has no {path}")
    spec: Any = importlib.util.spec_from_file_location(f"{distribution}_file", str(files[0].locate()))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
