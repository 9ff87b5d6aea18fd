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
from destruct.export import place_of, quiet
from destruct.exporting.source import open_source
from destruct.progress import progress

if TYPE_CHECKING:
    from destruct.exporting.speaker import Speaker

EPILOG = """\
The temperature is by default the one that the run sampled with; 0 takes the likeliest token each time.
The prompt is taken as plain text: no chat template is applied.
Exit codes: 0 done, 2 something is not there or does not fit, 3 a checkpoint is damaged, 130 Ctrl-C before the text."""

LEAST_TEMPERATURE = 0.01
"""The bound of rollout.temperature: quotients by much smaller ones are no float32 any more."""


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; DestructError where it cannot be read."""
    parser = Parser(
        'write: --model FOLDER "prompt"; --help says more', prog="destruct generate", description=__doc__, epilog=EPILOG
    )
    parser.add_argument("--model", required=True, metavar="FOLDER|RUN", help="exported model, run, or checkpoint")
    parser.add_argument("prompt", help="what is continued")
    parser.add_argument(
        "--max-tokens", type=int, metavar="N", help="most tokens that follow (default 128, or as many as fit)"
    )
    parser.add_argument("--temperature", type=float, metavar="T", help="divides the logits (default: the model's own)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the sampling (default 0)")
    options = parser.parse_args(arguments)
    if options.max_tokens is not None and options.max_tokens < 1:
        raise DestructError(f"--max-tokens {options.max_tokens} is no number of tokens", "write 1 or more")
    t = options.temperature
    if t is not None and t != 0 and not LEAST_TEMPERATURE < t < float("inf"):
        raise DestructError(
            f"--temperature {t} is no temperature",
            f"write 0, or more than {LEAST_TEMPERATURE}, as for rollout.temperature",
        )
    if not 0 <= options.seed < 2**63:
        raise DestructError(f"--seed {options.seed} is no seed", "write 0 or more")
    try:
        options.prompt.encode()
    except UnicodeEncodeError:  # what Python makes of bytes that are no UTF-8
        raise DestructError("the prompt is not UTF-8 text", "convert it") from None
    return options


def load(name: str) -> "Speaker":
    """The model of a folder, or the policy of a run's newest checkpoint or of the one that is named.

    Raises:
        DestructError: there is none, or it cannot be read.
    """
    place = place_of(name)
    with progress("verify", unit="B") as tell, quiet():
        source = None if (place / "config.json").is_file() else open_source(place, tell=tell)
    with progress("load", unit="tensors") as tell, quiet():
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
