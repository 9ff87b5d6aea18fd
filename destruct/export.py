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
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rich.console import Console
from rich.progress import DownloadColumn, Progress, ProgressColumn

from destruct.doors import Parser, find_run, told
from destruct.errors import DestructError
from destruct.exits import Exit, leave
from destruct.exporting.place import check_place
from destruct.exporting.source import POLICY, ROLES, Tell, open_source

if TYPE_CHECKING:
    from destruct.exporting.folder import Exported

DTYPES = ("float32", "bfloat16")
SIZE = re.compile(r"(\d+\.?\d*) ?(KB|MB|GB|TB)", re.IGNORECASE)
LOOK_S = 0.1
"""Between two looks at how far it is."""

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
        with progress("verify", DownloadColumn()) as tell:
            source = open_source(place, options.role, tell)
        with progress("export") as tell:
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
def progress(name: str, *figures: ProgressColumn) -> Iterator[Tell]:
    """A bar on a terminal, and silence of all libraries, while the block lasts.

    Args:
        figures: columns beside those of every bar.

    Yields:
        what is told how much is done, and how much there is in all.
    """
    console = Console(file=sys.stderr)
    bar = Progress(
        *Progress.get_default_columns(),
        *figures,
        console=console,
        disable=not console.is_terminal,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    with quiet(), bar:
        task = bar.add_task(name, total=None)
        next_look = 0.0

        def tell(done: int, total: int) -> None:
            nonlocal next_look
            if done == total or time.monotonic() >= next_look:
                next_look = time.monotonic() + LOOK_S
                bar.update(task, completed=done, total=total)

        yield tell


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
