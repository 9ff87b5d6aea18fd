"""Explain a run's weights: `destruct explain RUN [--strategy NAME] [--set curriculum.key=value ...]`.

RUN is a run's folder, or its name in runs/.  With --strategy or --set, the weights that another strategy or other dials
would have set on the recorded estimates stand beside the run's.
"""

import argparse
import copy
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from destruct.config.base import validate
from destruct.config.reading import apply_overrides, read_yaml
from destruct.config.settings import Config
from destruct.curriculum.dials import strategy_from
from destruct.curriculum.estimates import MIN_ROUNDS
from destruct.curriculum.replay import Replay, late_beginning, of_the_same_sources, replay, verdict
from destruct.curriculum.strategies import STRATEGIES, FixedWeights
from destruct.doors import Parser, find_run, told
from destruct.errors import DestructError
from destruct.exits import Exit, leave
from destruct.tracking.explanation import Account, as_json, show
from destruct.tracking.rounds import RecordedRound, read_rounds

RECORDED = ("unit", "kappa", "difficulty_sample_size", "probe_budget", "plateau_retry")
"""Keys of the curriculum that decide what was measured, which no replay changes."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a run's config says, and what is asked of it."""

    run: Config
    other: Config | None  # with --strategy and --set; None where they ask for nothing else


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; DestructError where it cannot be read."""
    parser = Parser("write: RUN [--strategy NAME]; --help says more", prog="destruct explain", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="a run's folder, or its name in runs/")
    parser.add_argument("--strategy", choices=STRATEGIES, help="replay the recorded estimates through this one")
    parser.add_argument(
        "--set",
        dest="dials",
        action="append",
        default=[],
        metavar="curriculum.key=value",
        help="replay with other dials; may be repeated",
    )
    parser.add_argument("--round", type=int, metavar="N", help="as of round N, 0 being the first; by default the last")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    return parser.parse_args(arguments)


def read_config(folder: Path, strategy: str | None, dials: list[str]) -> Asked:
    """The config of a run, and the same with another strategy and other dials.

    Raises:
        DestructError: `resolved.yaml` is missing or damaged, or what is asked for is no valid config.
    """
    path = folder / "resolved.yaml"
    if not path.is_file():
        raise DestructError(f"{folder} is not a run's folder: it has no {path.name}", "name the folder of a run")
    values, provenance = read_yaml(path)
    run = validate(Config, values, str(path), provenance)
    for override in dials:
        key = override.partition("=")[0].removeprefix("curriculum.")
        if not override.startswith("curriculum."):
            raise DestructError(
                f"--set {override}: only keys of the curriculum can be replayed", "name one: curriculum.key"
            )
        if key in RECORDED:
            raise DestructError(
                f"--set {override}: {key} decides what is measured, and the measurements are recorded already",
                "make a run with it",
            )
        if key == "strategy":
            raise DestructError(f"--set {override}: the strategy has an option of its own", "write --strategy NAME")
    asked = copy.deepcopy(values)
    named = [] if strategy is None else [f"curriculum.strategy={strategy}"]
    apply_overrides(asked, provenance, [*dials, *named])
    other = validate(Config, asked, str(path), provenance)
    changed = other.curriculum != run.curriculum
    if changed and other.curriculum.strategy == "temperature":
        raise DestructError(
            "temperature weighs sources by their tokens, and the log does not have their number",
            "its weights never move: a run with curriculum.strategy=temperature logs them in its first round",
        )
    return Asked(run, other if changed else None)


def replay_config(config: Config, rounds: list[RecordedRound]) -> Replay:
    """Recorded rounds through the strategy of a config, which is over their sources.

    Raises:
        DestructError: its dials are refused.
    """
    if config.curriculum.strategy == "temperature":  # fixed; the sizes that it is made from are not in the log
        return replay(rounds, FixedWeights(rounds[0].weights))
    prior = {name: config.data.prior[name] for name in rounds[0].names}
    return replay(rounds, strategy_from(config.curriculum, prior, np.ones(len(prior))))


def explain(folder: Path, asked: Asked, until: int | None) -> Account:
    """What the run's rounds say, up to the one with the index `until` or the last.

    Raises:
        DestructError: there is no such round, none at all, or none of the sources that the run has now.
    """
    recording, third = read_rounds(folder / "metrics.jsonl"), (MIN_ROUNDS - 1) * asked.run.frozen.refresh_every
    if not recording.rounds:
        damaged = f", and lines that are damaged: {recording.damaged}" if recording.damaged else ""
        raise DestructError(
            f"{folder / 'metrics.jsonl'} has no round yet{damaged}",
            f"wait: the first comes right after the warm-up, the third, which moves weights, after {third} updates",
        )
    rounds = of_the_same_sources(recording.rounds)
    before = len(recording.rounds) - len(rounds)
    if set(rounds[0].names) != set(asked.run.data.sources):
        raise DestructError(
            f"the rounds are of {', '.join(rounds[0].names)}, and the run goes on with other sources: "
            f"{', '.join(asked.run.data.sources)}",
            "wait for its next round",
        )
    kept = [recorded for recorded in rounds if until is None or recorded.index <= until]
    if not kept or (until is not None and kept[-1].index != until):
        last, whose = rounds[-1].index, f" of {', '.join(rounds[0].names)}" if before else ""
        raise DestructError(f"there is no round {until}{whose}", f"take one of {rounds[0].index} to {last}")
    own = replay_config(asked.run, kept)
    reproduced, line = verdict(own)
    notes = [f"replay: {line}"]
    if (late := late_beginning(kept, before)) is not None:
        notes.append(late)
    if recording.damaged:
        notes.append(f"damaged lines of metrics.jsonl, which were skipped: {recording.damaged}")
    if kept[-1].index + 1 < MIN_ROUNDS:
        left = third - recording.updates
        notes.append("no weight moves before the third round" + (f", in {left} updates" if left > 0 else ""))
    other = replay_config(asked.other, kept) if asked.other else None
    return Account(folder, asked.run, own, reproduced, notes, asked.other, other)


def answer(options: argparse.Namespace) -> int:
    """Print an explanation; DestructError where there can be none."""
    folder = find_run(options.run)
    account = explain(folder, read_config(folder, options.strategy, options.dials), options.round)
    if options.json:
        content: dict[str, Any] = as_json(account)
        print(json.dumps(content, indent=1, allow_nan=False))
    else:
        show(account)
    return Exit.DONE


def main(arguments: list[str] | None = None) -> int:
    """Print an explanation; returns the exit code."""
    return told(lambda: answer(parse(sys.argv[1:] if arguments is None else arguments)))


if __name__ == "__main__":
    leave(main())
