"""Train: `deepspeed --num_gpus 2 -m destruct.train --config configs/local.yaml [key.sub=value ...]`.

The same module runs under `torchrun`, or alone as one rank.
"""

import argparse
import faulthandler
import json
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from destruct import events, last_words, streams
from destruct.config.settings import Settings, load
from destruct.doors import Parser, ctrl_c_kept, write_anywhere
from destruct.durable import writing_to
from destruct.errors import DestructError, Diverged, Drifted
from destruct.exits import Exit, leave
from destruct.report import PAGE
from destruct.secrets import mask_stderr, masked
from destruct.signals import Signals, Stopped

if TYPE_CHECKING:
    from destruct.run import Run
    from destruct.tracking.summary import Summary

EPILOG = """Every key with its default and bounds: docs/config.md.
SIGTERM, SIGINT (Ctrl-C) and SIGUSR1 save after the step under way and end the run; a second Ctrl-C ends it at once.
Exit codes: 0 done, 2 configuration, 3 environment, 75 stopped and saved, 76 a rank failed or the run was set back
(start it again), 77 it diverged too often."""


class OncePrinting(Parser):
    """A parser of which many ranks print one help."""

    def print_help(self, file: Any = None) -> None:
        """Print on the first rank alone."""
        if os.environ.get("RANK", "0") == "0":
            super().print_help(file)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; DestructError where it cannot be read."""
    parser = OncePrinting(
        "write: --config FILE [key.sub=value ...]; --help says more",
        prog="destruct.train",
        description=__doc__.partition("\n")[0],
        epilog=EPILOG,
    )
    add_run(parser)
    parser.add_argument("--local_rank", "--local-rank", type=int, help="given by launchers; the environment decides")
    return parser.parse_intermixed_args(arguments)


def add_run(parser: argparse.ArgumentParser) -> None:
    """The arguments that say which run."""
    parser.add_argument("--config", type=Path, required=True, help="YAML file of the run, e.g. configs/local.yaml")
    parser.add_argument(
        "--resume",
        metavar="auto|PATH|never",
        help="the same as run.resume=...: the run's latest checkpoint if any, the one at PATH, or none",
    )
    parser.add_argument(
        "--quiet", action="store_true", help="say nothing but what is wrong; logs and files are as ever"
    )
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="overrides, e.g. ppo.epochs=1 run.seed=2")


def world_size() -> int:
    """Ranks that the launcher started; 1 without a launcher.

    Raises:
        DestructError: the variables of a launcher are not its own: left over, incomplete or no numbers.
    """
    names = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT")
    given = {name: os.environ[name] for name in names if name in os.environ}
    remedy = f"unset {' '.join(given)}, or use a launcher, which sets all of them"
    for name, text in given.items():
        if not (text.isascii() and text.isdecimal()):
            raise DestructError(f"{name}={text!r} is not a number", remedy, Exit.ENVIRONMENT)
    size, rank = int(given.get("WORLD_SIZE", "1")), int(given.get("RANK", "0"))
    if not rank < size or (size > 1 and len(given) < len(names)):
        shown = " ".join(f"{name}={text}" for name, text in given.items())
        raise DestructError(f"{shown} do not describe a rank among others", remedy, Exit.ENVIRONMENT)
    return size


def read(options: argparse.Namespace, ranks: int) -> Settings:
    """The settings that the command line asks for, `--resume` being another way to write `run.resume=`.

    Raises:
        DestructError: both are given and differ, or anything that `load` refuses.
    """
    overrides, resume = list(options.overrides), options.resume
    if resume is not None and not any(override.startswith("run.resume=") for override in overrides):
        overrides.append(resuming(resume))
    settings = load(options.config, overrides, ranks)
    if resume not in (None, settings.config.run.resume):
        raise DestructError(f"--resume {resume} and run.resume={settings.config.run.resume} differ", "give one of them")
    return settings


def resuming(resume: str) -> str:
    """The override that `--resume` is another way to write."""
    return f"run.resume={json.dumps(resume, ensure_ascii=False)}"


def main(arguments: list[str] | None = None) -> int:
    """Run one rank; returns the exit code."""
    started = time.perf_counter()
    # Without a launcher there is one rank, whatever is left over in RANK.
    first = os.environ.get("RANK", "0") == "0" or "LOCAL_RANK" not in os.environ
    write_anywhere()
    try:
        with _telling(first, everywhere=True):
            options = parse(sys.argv[1:] if arguments is None else arguments)
            settings = read(options, world_size())
        with ctrl_c_kept(), streams.apart():
            _run(settings, started, first, options.quiet)
    except _Told as told:
        return told.exit_code
    except Stopped as stop:
        if first:
            say(str(stop))
        return Exit.PREEMPTED
    except KeyboardInterrupt:
        if first:
            say("interrupted")
        return 128 + signal.SIGINT
    return Exit.DONE


def say(line: str) -> None:
    """Tell the person why the run ends, if one is there still."""
    with suppress(OSError):
        print(f"destruct: {masked(line)}", file=streams.err(), flush=True)


class _Told(Exception):
    """A DestructError that the person has been told."""

    def __init__(self, exit_code: int):
        super().__init__()
        self.exit_code = exit_code


@contextmanager
def _telling(first: bool, everywhere: bool) -> Iterator[None]:
    """Print a DestructError, from one rank where all have it, and raise _Told; tell the launcher who ends first.

    Args:
        everywhere: what is wrong is so on every rank, as with the command line.
    """
    try:
        yield
    except Stopped:
        last_words.failed()
        raise
    except DestructError as error:
        last_words.failed()
        streams.forget()
        if not first:
            # A launcher ends all ranks as soon as it sees one gone; the first one has to speak before that.
            time.sleep(2 if everywhere else 5)
        if first or not everywhere:  # still here: the first rank may be well
            rank = "" if first else f"rank {os.environ['RANK']}: "
            say(f"{rank}{error}")
        raise _Told(error.exit_code) from None
    except (Diverged, Drifted) as end:  # on all ranks
        logging.getLogger(__name__).error("%s", end)
        if first:
            say(str(end))
        else:
            time.sleep(2)
        raise _Told(end.exit_code) from None


def _run(settings: Settings, started: float, first: bool, quiet: bool) -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if os.environ.get("RANK", "0") != "0":
        os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # one rank says that the hub is asked again
    from destruct.build import build
    from destruct.engine import topology as ranks
    from destruct.guard import refuse_other_settings
    from destruct.loop import train
    from destruct.summarizing import summarize
    from destruct.tracking.console import Screen
    from destruct.tracking.weights_and_biases import check as check_wandb
    from destruct.watchdog import watched

    with _telling(first, everywhere=False):
        topology = ranks.start()
        refuse_other_settings(settings, topology)
        topology.first_rank_makes(lambda: check_wandb(settings.config.wandb))
    with ExitStack() as at_end:
        at_end.callback(ranks.stop)
        # Told before the ranks part, or the others would fail for want of this one before it has spoken.
        at_end.enter_context(_telling(first, everywhere=False))
        # Not before: a rank that waits for others to come hears nothing, and has nothing to save.
        signals = Signals()
        at_end.enter_context(signals.heeded())
        screen = Screen(topology.is_first, quiet)
        at_end.enter_context(screen.shown())
        run = build(settings, topology, screen, started)
        at_end.callback(run.close)
        run.signals = signals
        signals.defer()
        at_end.enter_context(watched(run.folder, settings.config.guard.stall_s, topology))
        try:
            train(run)
        except Stopped as stop:
            _note(run, events.STOPPED, by=signal.Signals(stop.number).name, checkpoint=run.state.name)
            raise
        summary = summarize(run)
        if topology.is_first:
            with writing_to(run.folder):
                summary.save(run.folder / "summary.json")
        if run.sinks is not None:
            run.sinks.finish(run.state.update, summary.finals)
        _note(run, events.FINISHED, updates=run.state.update)
        if topology.is_first:
            summary = _report(run, summary)
        screen.table(summary)
        if not run.saved:
            raise run.unsaved()


def _note(run: "Run", what: str, **facts: Any) -> None:
    """Add a line to the run's events, on the first rank; without one, the run ends as it does."""
    if run.topology.is_first:
        with suppress(OSError):
            events.record(run.folder, what, **facts)


def _report(run: "Run", summary: "Summary") -> "Summary":
    """Write the page about the run, and name it in the summary; without one, the run ends as it does."""
    from destruct.reporting.page import render, write
    from destruct.reporting.recorded import read

    page = run.folder / PAGE
    try:
        write(render([read(run.folder, look=False)]), page)
        named = replace(summary, files=summary.files | {"report": str(page)})
        named.save(run.folder / "summary.json")
    except Exception as error:  # whatever it is, training is done and saved
        logging.getLogger(__name__).exception("no report")
        run.screen.say(f"no report was written ({error}): destruct report {run.folder} tries once more")
        return summary
    return named


def enter() -> NoReturn:
    """Run one rank as a process, which ends with 76 where the program fails."""
    faulthandler.enable()
    mask_stderr()
    try:
        code = main()
    except Exception:
        last_words.failed()
        print(masked(traceback.format_exc()), file=sys.stderr, end="")
        logging.getLogger(__name__).exception("this rank failed")
        code = Exit.RANK_FAILED
    leave(code)


if __name__ == "__main__":
    enter()
