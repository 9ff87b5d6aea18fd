"""DeepSpeed's checkpoints of one number of ranks, made readable for another one."""

import contextlib
import io
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deepspeed.checkpoint import ds_to_universal

from destruct.errors import DestructError
from destruct.exits import Exit


def convert(checkpoint: Path, to: Path) -> None:
    """Write whole float32 weights and moments, a folder for each parameter, from the shards of ZeRO 1 to 3.

    In this process and one parameter at a time, as a process that holds threads of gloo or NCCL does not fork.

    Args:
        checkpoint: a network's folder, verified: it is unpickled.
        to: made; twice the checkpoint's size on the way.

    Raises:
        DestructError: the network has made no step of an optimizer of DeepSpeed's own, or the disk refuses.
    """
    settings = Namespace(
        input_folder=str(checkpoint),
        output_folder=str(to),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,  # ZeRO 1 and 2 miss a version number that only Megatron writes
    )
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            ds_to_universal.main(settings)
    except KeyError:  # of the moments, which another Adam than torch's makes in its first step under ZeRO-3
        raise DestructError(
            f"{checkpoint} is of a network that made no step yet, which DeepSpeed cannot convert for other ranks",
            "go on at the number of ranks that wrote it, until the warm-up is over",
        ) from None
    except OSError as error:
        raise DestructError(f"{to} cannot be written: {error.strerror}", "make room there", Exit.ENVIRONMENT) from None


@contextlib.contextmanager
def read_as_universal(engine: Any) -> Iterator[None]:
    """Within the block a DeepSpeed engine loads what `convert` wrote."""
    engine._config.load_universal_checkpoint = True
    try:
        yield
    finally:
        engine._config.load_universal_checkpoint = False
