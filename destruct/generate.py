"""Continue a prompt: `destruct generate --model FOLDER|RUN "prompt" [--max-tokens N] [--temperature T] [--seed N]`.

FOLDER is what `destruct export` wrote, or any causal language model that transformers reads; RUN is a run's folder, its
name in runs/, or a checkpoint.  Prompt and continuation go to stdout as they come; equal seeds give equal texts.
"""

import argparse
import contextlib
import sys
from typing import TYPE_CHECKING

from destruct.doors import Parser, told
from destruct.errors import DestructError
from destruct.exits import Exit, leave
from destruct.export import place_of, progress
from destruct.exporting.source import open_source

if TYPE_CHECKING:
    from destruct.exporting.speaker import Speaker

EPILOG = """\
The temperature is by default the one that the run sampled with; 0 takes the likeliest token each time.
Exit codes: 0 done, 2 something is not there or does not fit, 3 a checkpoint is damaged."""


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; DestructError where it cannot be read."""
    parser = Parser(
        'write: --model FOLDER "prompt"; --help says more', prog="destruct generate", description=__doc__, epilog=EPILOG
    )
    parser.add_argument("--model", required=True, metavar="FOLDER|RUN", help="exported model, run, or checkpoint")
    parser.add_argument("prompt", help="what is continued")
    parser.add_argument(
        "--max-tokens", type=int, default=128, metavar="N", help="most tokens that follow (default 128)"
    )
    parser.add_argument("--temperature", type=float, metavar="T", help="divides the logits (default: the model's own)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the sampling (default 0)")
    options = parser.parse_args(arguments)
    if options.max_tokens < 1:
        raise DestructError(f"--max-tokens {options.max_tokens} is no number of tokens", "write 1 or more")
    if options.temperature is not None and not 0 <= options.temperature < float("inf"):
        raise DestructError(f"--temperature {options.temperature} is no temperature", "write 0 or more")
    if not 0 <= options.seed < 2**63:
        raise DestructError(f"--seed {options.seed} is no seed", "write 0 or more")
    return options


def load(name: str) -> "Speaker":
    """The model of a folder, or the policy of a run's newest checkpoint or of the one that is named.

    Raises:
        DestructError: there is none, or it cannot be read.
    """
    place = place_of(name)
    with progress("verify"):
        source = None if (place / "config.json").is_file() else open_source(place)
    with progress("load") as tell:
        from destruct.exporting.speaker import of_checkpoint, of_folder  # torch, of which bad input needs none

        return of_folder(place) if source is None else of_checkpoint(source, tell)


def run(options: argparse.Namespace) -> int:
    """Stream the text; DestructError where that cannot be done."""
    speaker = load(options.model)
    with contextlib.suppress(KeyboardInterrupt):  # enough was said
        speaker.speak(options.prompt, options.max_tokens, options.temperature, options.seed)
    return Exit.DONE


def main(arguments: list[str] | None = None) -> int:
    """Continue a prompt; returns the exit code."""
    return told(lambda: run(parse(sys.argv[1:] if arguments is None else arguments)))


if __name__ == "__main__":
    leave(main())
