"""Export a model: `destruct export RUN|CHECKPOINT --to FOLDER [--role policy]`.

FOLDER becomes what transformers saves: weights in safetensors, config, tokenizer, and a model card.  RUN is a run's
folder, or its name in runs/, of which the newest checkpoint is taken; CHECKPOINT is one of its checkpoints/, or the
pointer best or latest beside them.  Neither a GPU nor other ranks are needed, whatever wrote the checkpoint.
"""

import argparse
import contextlib
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from destruct.doors import Parser, find_run, told
from destruct.errors import DestructError
from destruct.exits import Exit, leave
from destruct.exporting.place import check_place
from destruct.exporting.source import POLICY, ROLES, open_source
from destruct.progress import progress

if TYPE_CHECKING:
    from destruct.exporting.folder import Exported

DTYPES = ("float32", "bfloat16")
SIZE = re.compile(r"(\d+\.?\d*) ?(KB|MB|GB|TB)", re.IGNORECASE)

EPILOG = """\
The dtype is by default the one that the run computed with and was validated in.  Of a float32 run transformers then
has the validation loss to within 1e-4 nats per token, of a bfloat16 run to within some 1e-4 at most sources (1e-3 at
worst): it rounds logits to bfloat16, which the run does not.  The policy's weights are kept in float32, and --dtype
float32 exports those, to train on.  The frozen and the initial model are copies in the dtype of the run.
Exit codes: 0 done, 2 something is not there, 3 a checkpoint is damaged, FOLDER cannot be written or a signal ended it,
130 Ctrl-C."""


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; DestructError where it cannot be read."""
    parser = Parser(
        "write: RUN --to FOLDER; --help says more", prog="destruct export", description=__doc__, epilog=EPILOG
    )
    parser.add_argument("what", metavar="RUN|CHECKPOINT", help="a run's folder or name, a checkpoint, or a pointer")
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="must not exist, or be empty")
    parser.add_argument("--role", choices=ROLES, default=POLICY, help="which copy of the policy (default policy)")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights (default: the run's)")
    parser.add_argument("--max-shard", default="5GB", metavar="SIZE", help="of a file of weights (default 5GB)")
    options = parser.parse_args(arguments)
    found = SIZE.fullmatch(options.max_shard)
    if found is None or float(found[1]) == 0:
        raise DestructError(f"--max-shard {options.max_shard} is no size of a file", "write e.g. 5GB or 500MB")
    return options


def place_of(name: str) -> Path:
    """The path that a person means: of a file or folder, or of a run by its name.

    Raises:
        DestructError: there is neither.
    """
    return Path(name) if Path(name).exists() else find_run(name)


def run(options: argparse.Namespace) -> int:
    """Export; DestructError where that cannot be done."""
    check_place(options.to)
    place = place_of(options.what)
    with stoppable():
        with progress("verify", unit="B") as tell, quiet():
            source = open_source(place, options.role, tell)
        with progress("export", unit="tensors") as tell, quiet():
            from destruct.exporting.folder import export  # torch, of which bad input needs none

            written = export(source, options.to, options.dtype, options.max_shard, tell)
    print(_line(options.to, source.checkpoint, written))
    return Exit.DONE


@contextmanager
def stoppable() -> Iterator[None]:
    """Within the block signals that end a process are a DestructError, so that what was begun is taken away.

    Ctrl-C is an exception anyway; a signal that is ignored, as under nohup, stays so.
    """

    def stop(number: int, _: object) -> NoReturn:
        raise DestructError(
            f"{signal.Signals(number).name} ended the export; nothing of it is left", "start it again", Exit.ENVIRONMENT
        )

    heeded = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _line(folder: Path, checkpoint: Path, written: "Exported") -> str:
    return (
        f"{folder}: {written.parameters:,} parameters in {written.dtype}, {written.size / 2**20:,.1f} MiB in "
        f"{written.files} file(s), from {checkpoint}"
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Within the block nothing of what libraries say, warn of or log reaches the screen."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    before = logging.root.manager.disable
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


def main(arguments: list[str] | None = None) -> int:
    """Export a model; returns the exit code."""
    return told(lambda: run(parse(sys.argv[1:] if arguments is None else arguments)))


if __name__ == "__main__":
    leave(main())
