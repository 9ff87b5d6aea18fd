"""Evaluate a model: `destruct evaluate --checkpoint RUN|FOLDER|hub-id [--against OTHER] [--config FILE]`.

Held-out loss, perplexity and bits per byte of each source, what responses to held-out prompts are like, and prompts of
your own continued.  RUN is a run's folder or its name in runs/, of which the newest checkpoint is taken, one of its
checkpoints/, or the pointer best or latest beside them; FOLDER is what transformers reads, exported or not.
With --against the differences come with paired errors.  The config's data, rollout settings and prompts are used:
by default those of the run.
"""

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from destruct.config.prompts import Prompt, read_prompts
from destruct.config.reading import find_beside
from destruct.config.settings import Config, read_config
from destruct.doors import RUNS, Parser, find_run, told
from destruct.errors import DestructError
from destruct.evaluating.subject import Job, Subject
from destruct.exits import Exit, leave
from destruct.export import quiet
from destruct.exporting.source import open_source
from destruct.progress import Tell, progress, tell_nobody
from destruct.secrets import masked
from destruct.tracking.console import Screen
from destruct.train import world_size

if TYPE_CHECKING:
    from destruct.evaluating.evaluation import Evaluation

EPILOG = """\
Under torchrun the ranks share the windows and the prompts; each holds the whole model.
Exit codes: 0 done, 2 something is not there or does not fit, 3 a checkpoint is damaged, a model cannot be had, or a
result cannot be written.  docs/evaluating.md says what each figure is."""

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
STDOUT = "-"
SAMPLES = 32
"""Held-out prompts of each source that are continued, unless --samples says another number."""
FIRST_SPEAKS_S = 5.0
"""A launcher ends all ranks as soon as it sees one gone; the first one has to speak before that."""


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; DestructError where it cannot be read."""
    parser = Parser(
        "write: --checkpoint RUN|FOLDER|hub-id; --help says more",
        prog="destruct evaluate",
        description=__doc__,
        epilog=EPILOG,
    )
    parser.add_argument("--checkpoint", required=True, metavar="RUN|FOLDER|ID", help="what is evaluated")
    parser.add_argument("--against", metavar="RUN|FOLDER|ID", help="what it is compared with")
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML of a run (default: that of the run)")
    parser.add_argument(
        "--windows", type=int, metavar="N", help="most held-out windows per source (default: run.validation_windows)"
    )
    parser.add_argument(
        "--samples", type=int, default=SAMPLES, metavar="N", help=f"prompts per source, 0 for none (default {SAMPLES})"
    )
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="your own prompts (default: prompts.file)")
    parser.add_argument("--seed", type=int, metavar="N", help="of what is sampled (default: run.seed)")
    parser.add_argument("--dtype", choices=("auto", "float32"), default="auto", help="default auto: the model's own")
    parser.add_argument("--json", metavar="FILE|-", help="everything, in full precision; - for standard output")
    parser.add_argument("--markdown", metavar="FILE|-", help="the tables and texts as a page")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="overrides, as for destruct train")
    options = parser.parse_intermixed_args(arguments)
    for name, least in (("windows", 1), ("samples", 0), ("seed", 0)):
        number = getattr(options, name)
        if number is not None and not least <= number < 2**63:
            raise DestructError(f"--{name} {number} is out of range", f"write {least} or more")
    if options.json is not None and options.json == options.markdown:
        raise DestructError(f"--json and --markdown would both be written to {options.json}", "name two places")
    return options


def find(key: str, name: str, tell: Tell) -> Subject:
    """The model that a person means; a run's checkpoint is verified.

    Args:
        key: the option that names it.
        tell: is told of the bytes that are verified.

    Raises:
        DestructError: there is none, or it is damaged.
    """
    path = Path(name)
    if (path / "config.json").is_file():
        return Subject(key, name, None)
    if not path.exists() and not (RUNS / name).exists() and HUB_ID.fullmatch(name) and not path.parent.is_dir():
        return Subject(key, name, None)
    source = open_source(path if path.exists() else find_run(name), tell=tell)
    return Subject(key, str(source.checkpoint), source)


def job_of(options: argparse.Namespace, tell: Tell = tell_nobody) -> Job:
    """What is asked for, checked as far as that goes without torch.

    Raises:
        DestructError: a model, the config, a file of prompts or a place for a result is not what it should be.
    """
    for output in (options.json, options.markdown):
        _check_output(output)
    asked = {"--checkpoint": options.checkpoint, "--against": options.against}
    subjects = tuple(find(key, name, tell) for key, name in asked.items() if name is not None)
    path = options.config or next((each.config for each in subjects if each.config is not None), None)
    if path is None:
        raise DestructError(
            f"nothing says which texts {subjects[0].name} is to be evaluated on",
            "write --config FILE, the YAML of a run: its sources, prompts and rollout settings are used",
        )
    config, _ = read_config(path, options.overrides)
    _check_model(subjects[0], config, path)
    return Job(
        subjects=subjects,
        config=config,
        path=path,
        prompts=_prompts(options.prompts, config, path),
        windows=options.windows or config.run.validation_windows,
        samples=options.samples,
        seed=config.run.seed if options.seed is None else options.seed,
        float32=options.dtype == "float32",
    )


def _check_output(name: str | None) -> None:
    if name in (None, STDOUT):
        return
    path = Path(name)
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else f"cannot be written: there is no folder {path.parent}"
        raise DestructError(f"{path} {what}", "name a file in a folder that exists")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise DestructError(f"{path} cannot be written: permission denied", "name another file", Exit.ENVIRONMENT)


def _check_model(subject: Subject, config: Config, path: Path) -> None:
    """Refuse the config of another run: a checkpoint says what its model is."""
    if subject.source is None:
        return
    for key, value in config.model.policy.model_dump(mode="json").items():
        theirs = subject.source.facts.get(f"model.policy.{key}")
        if theirs != value:
            raise DestructError(
                f"{subject.name} is of a model with model.policy.{key} = {theirs}; {path} has {value}",
                "leave --config out for that of its run, or export the checkpoint and evaluate the folder",
            )


def _prompts(file: Path | None, config: Config, path: Path) -> tuple[Prompt, ...]:
    if file is not None:
        return read_prompts(file)
    named = config.prompts.file
    return () if named is None else read_prompts(find_beside(named, path, "prompts.file"))


def run(options: argparse.Namespace) -> int:
    """Evaluate; DestructError where that cannot be done."""
    ranks, first = world_size(), _rank() == 0
    screen = Screen(first, file=sys.stderr)  # standard output is the result
    with quiet():
        with progress("verify", unit="B", console=screen.console) as tell:
            job = job_of(options, tell)
        evaluation = _evaluated(job, ranks, screen)
    if first:
        _tell(evaluation, options, screen)
    return Exit.DONE


def _evaluated(job: Job, ranks: int, screen: Screen) -> "Evaluation":
    from destruct.engine import topology as group  # and torch, of which bad input needs none
    from destruct.evaluating.evaluation import evaluate

    topology = group.start() if ranks > 1 else group.Topology(0, 1, group.own_device())
    try:
        return evaluate(job, topology, screen)
    finally:
        group.stop()


def _tell(evaluation: "Evaluation", options: argparse.Namespace, screen: Screen) -> None:
    """Say what was found on standard output, then write the files that were asked for."""
    from destruct.evaluating.report import as_json
    from destruct.evaluating.showing import markdown, shown

    places: dict[str | None, Callable[[], str]] = {
        STDOUT: lambda: shown(evaluation),
        options.json: lambda: json.dumps(as_json(evaluation), indent=1, allow_nan=False) + "\n",
        options.markdown: lambda: markdown(evaluation),
    }
    with suppress(BrokenPipeError):  # the reader has seen enough
        print(masked(places.pop(STDOUT)()), end="", flush=True)
    for name, text in places.items():
        if name is None:
            continue
        try:
            Path(name).write_text(masked(text()), encoding="utf-8")
        except OSError as error:
            problem = f"{name} cannot be written: {error.strerror or error}"
            raise DestructError(problem, "name another file", Exit.ENVIRONMENT) from None
        screen.say(f"{name} is written")


def _rank() -> int:
    """This process's place among those of a launcher; without one there is one rank, whatever is left over in RANK."""
    return int(os.environ["RANK"]) if "LOCAL_RANK" in os.environ and world_size() > 1 else 0


def _in_turn(answer: Callable[[], int]) -> int:
    """The answer of a rank; what is wrong is told by the first one, where it is so on all."""
    try:
        return answer()
    except DestructError as error:
        if not (rank := _rank()):
            raise
        time.sleep(FIRST_SPEAKS_S)
        raise DestructError(f"rank {rank}: {error.problem}", error.remedy, error.exit_code) from None


def main(arguments: list[str] | None = None) -> int:
    """Evaluate a model; returns the exit code."""
    return told(lambda: _in_turn(lambda: run(parse(sys.argv[1:] if arguments is None else arguments))))


if __name__ == "__main__":
    leave(main())
