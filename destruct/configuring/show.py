"""Show what a run would be: `destruct config show [--config FILE] [--ranks N] [--deepspeed] [key.sub=value ...]`.

Every value of the YAML, defaults included, each with the file and line, `command line` or `default` it comes from, as
the run's resolved.yaml has it.
"""

import argparse
import json
import sys
from pathlib import Path

from destruct.configuring.answer import say
from destruct.doors import Parser, told
from destruct.errors import DestructError
from destruct.exits import Exit, leave

EPILOG = """Without --ranks and --deepspeed the YAML is checked by itself; with one of them as a run checks it, with the
files that it names and the batch algebra of so many ranks.
Exit codes: 0 shown, 2 the config is refused."""


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; DestructError where it cannot be read."""
    parser = Parser(
        "write: [--config FILE] [--ranks N] [--deepspeed] [key.sub=value ...]; --help says more",
        prog="destruct config show",
        description=__doc__,
        epilog=EPILOG,
    )
    parser.add_argument(
        "--config", type=Path, default=Path("configs/local.yaml"), help="YAML file (default: configs/local.yaml)"
    )
    parser.add_argument("--ranks", type=int, metavar="N", help="ranks of the run (for --deepspeed 1 unless given)")
    parser.add_argument(
        "--deepspeed", action="store_true", help="then, as a second document, the filled JSON of each engine"
    )
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="overrides, as for destruct train")
    options = parser.parse_intermixed_args(arguments)
    if options.ranks is not None and options.ranks < 1:
        raise DestructError(f"--ranks {options.ranks} is no number of ranks", "write 1 or more")
    return options


def shown(options: argparse.Namespace) -> str:
    """The text that is printed.

    Raises:
        DestructError: the config is refused.
    """
    from destruct.config.base import dump_with_provenance
    from destruct.config.settings import load, read_config

    if options.ranks is None and not options.deepspeed:
        return dump_with_provenance(*read_config(options.config, options.overrides))
    ranks = options.ranks or 1
    settings = load(options.config, options.overrides, ranks)
    text = dump_with_provenance(settings.config, settings.provenance)
    if options.deepspeed:
        count = "1 rank" if ranks == 1 else f"{ranks} ranks"
        text += f"---  # the engines of {count}\n{json.dumps(settings.deepspeed(), indent=1)}\n"
    return text


def main(arguments: list[str] | None = None) -> int:
    """Print a resolved config; returns the exit code."""
    return told(lambda: _answer(sys.argv[1:] if arguments is None else arguments))


def _answer(arguments: list[str]) -> int:
    say(shown(parse(arguments)).removesuffix("\n"))
    return Exit.DONE


if __name__ == "__main__":
    leave(main())
