"""Train: `deepspeed --num_gpus 2 -m destruct.train --config configs/local.yaml [key.sub=value ...]`.

The same module runs under `torchrun`, or alone as one rank.
"""

import argparse
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

from destruct.config.settings import Settings, load
from destruct.errors import DestructError
from destruct.exits import Exit, leave

EPILOG = """Every key with its default and bounds: docs/config.md.
Exit codes: 0 done, 2 configuration, 3 environment; the launchers add 76, a rank failed."""


class Parser(argparse.ArgumentParser):
    """argparse with our two lines instead of its usage block."""

    def error(self, message: str) -> NoReturn:
        """Raise DestructError."""
        raise DestructError(message, "write: --config FILE [key.sub=value ...]; --help says more")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; DestructError where it cannot be read."""
    parser = Parser(
        prog="destruct.train",
        description=__doc__.partition("\n")[0],
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML file of the run, e.g. configs/local.yaml")
    parser.add_argument("--local_rank", "--local-rank", type=int, help="given by launchers; the environment decides")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="overrides, e.g. ppo.epochs=1 run.seed=2")
    return parser.parse_intermixed_args(arguments)


def world_size() -> int:
    """Ranks that the launcher started; 1 without a launcher.

    Raises:
        DestructError: WORLD_SIZE is not a positive number.
    """
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdigit() or int(text) < 1:
        raise DestructError(
            f"WORLD_SIZE={text!r} is not a number of ranks", "unset WORLD_SIZE, or use a launcher", Exit.ENVIRONMENT
        )
    return int(text)


def main(arguments: list[str] | None = None) -> int:
    """Run one rank; returns the exit code."""
    started = time.perf_counter()
    first = os.environ.get("RANK", "0") == "0"
    try:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        settings = load(options.config, options.overrides, world_size())
        _run(settings, started)
    except DestructError as error:
        if first:
            print(f"destruct: {error}", file=sys.stderr, flush=True)
        else:
            # A launcher ends all ranks as soon as it sees one gone; the first one has to speak before that.
            time.sleep(2)
        return error.exit_code
    return Exit.DONE


def _run(settings: Settings, started: float) -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    from destruct.build import build
    from destruct.engine import topology as ranks
    from destruct.loop import train
    from destruct.recording import summarize
    from destruct.tracking.console import Screen

    topology = ranks.start()
    with ExitStack() as at_end:
        at_end.callback(ranks.stop)
        run = build(settings, topology, Screen(topology.is_first), started)
        if run.sinks is not None:
            at_end.callback(run.sinks.close)
        train(run)
        summary = summarize(run)
        if topology.is_first:
            summary.save(run.folder / "summary.json")
        run.screen.table(summary)


if __name__ == "__main__":
    leave(main())
