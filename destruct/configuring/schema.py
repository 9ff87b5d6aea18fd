"""A JSON schema for editors: `destruct config schema [--deepspeed [training|frozen] | --prompts]`.

Draft 2020-12, of the YAML of a run unless an option names another file: keys, types, bounds, choices and what each key
means.  configs/schema.json is the one of the YAML, and the first line of each file there names it to the editor.
"""

import argparse
import sys

from destruct.configuring.answer import say
from destruct.doors import Parser, told
from destruct.exits import Exit, leave

EPILOG = """What holds between keys, and between files, is in no schema: `destruct config show` says it."""


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; DestructError where it cannot be read."""
    parser = Parser(
        "write: [--deepspeed [training|frozen] | --prompts]; --help says more",
        prog="destruct config schema",
        description=__doc__,
        epilog=EPILOG,
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        "--deepspeed",
        dest="kind",
        nargs="?",
        const="training",
        choices=("training", "frozen"),
        help="of the DeepSpeed JSON of engine.deepspeed (training, unless the other is named) or engine.frozen",
    )
    kind.add_argument("--prompts", dest="kind", action="store_const", const="prompts", help="of the YAML of prompts")
    parser.set_defaults(kind="run")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Print a schema; returns the exit code."""
    return told(lambda: _answer(parse(sys.argv[1:] if arguments is None else arguments)))


def _answer(options: argparse.Namespace) -> int:
    from destruct.config.schema import schema_text

    say(schema_text(options.kind).removesuffix("\n"))
    return Exit.DONE


if __name__ == "__main__":
    leave(main())
