"""Whether the curriculum pays: a small Llama on sources whose entropy is known exactly; one JSON line on stdout.

    python -m bench.curriculum --strategies uniform,second_order,literal,odm,doremi --seeds 3   # quick: 1M tokens
    python -m bench.curriculum --full                           # what the targets are judged on: 6M tokens each
    python -m bench.curriculum --strategies 'uniform,second_order[z=0]' --set eta=0.25             # an ablation
    python -m bench.curriculum --ppo                            # the whole PPO job of configs/local.yaml instead

`--full` makes uniform and second_order on the mixture with waste and on the clean one, three seeds each, with panels of
24, and two short runs of second_order that differ in the order of their sources alone.  Without it the panels are the
config's, and no target is judged.

Finished runs are kept in bench/curriculum_results.jsonl, by settings and commit, and are not made again.  Excess is
held-out nats per byte beyond what the source costs; tokens are charged for rounds too (`bench/curriculum_run.py`).
`speedup_to_uniform` is how many times fewer tokens reach uniform's final average, with its 95% interval over the seeds.
"""

import argparse
import importlib
import json
import math
import re
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from bench.curriculum_curves import curves, write
from bench.curriculum_judge import judge
from bench.curriculum_ppo import compare
from bench.curriculum_results import FILE, ROOT
from bench.curriculum_settings import BARE, FIXED, Settings
from bench.curriculum_workers import finished
from destruct.errors import DestructError

QUICK = {"strategies": "uniform,second_order", "mixture": "waste", "budget": 1_000_000}
FULL = {"strategies": "uniform,second_order", "mixture": "waste,clean", "budget": 6_000_000}
FULL_PANEL = 24
"""Windows of a panel under `--full`."""
MOST_SEEDS = 10
PERMUTED_BUDGET = 1_500_000
"""Tokens of the two runs that differ in the order of their sources."""


def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the runs that the targets are judged on")
    parser.add_argument("--ppo", action="store_true", help="runs of configs/local.yaml (bench/curriculum_ppo.py)")
    parser.add_argument("--strategies", help="with commas; overrides in brackets: second_order[z=0,eta=0.25]")
    parser.add_argument("--seeds", default="3", help="how many, at most 10, or which: 0,4")
    parser.add_argument("--mixture", help="waste, clean or both with a comma; `strategies` is about the first one")
    parser.add_argument("--budget", type=int, help="tokens of a run")
    parser.add_argument("--round", type=int, help="tokens between two rounds: 300,000 or a tenth of the budget if less")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a key of `curriculum` for all that move"
    )
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each")
    parser.add_argument("--results", type=Path, default=FILE, help="the file of finished runs")
    parser.add_argument("--curves", type=Path, help="JSON and PNG, without the ending")
    parser.add_argument("--catalogue", default="bench.curriculum_sources", help="module with SOURCES and MIXTURES")
    options = parser.parse_args(arguments)
    for name, value in (FULL if options.full else QUICK).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.curves is None:
        # Only the judged runs' curves are tracked.
        options.curves = ROOT / ("bench" if options.full else "runs") / "curriculum_curves"
    return options


def main(arguments: list[str] | None = None) -> int:
    options = read_options(arguments)
    try:
        report = measure(options)
    except DestructError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        kept = "nothing is kept" if options.ppo else "the finished runs are kept, the same command goes on"
        print(f"stopped; {kept}", file=sys.stderr)
        return 130
    print(json.dumps(report))
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Make the runs that are missing, draw the curves, judge."""
    if options.ppo:
        if "[" in options.strategies:
            raise DestructError(
                f"--ppo reads no overrides in --strategies {options.strategies}", "write --set KEY=VALUE"
            )
        dials = [f"curriculum.{override}" for override in options.set]
        return {"ppo": compare(options.strategies.split(","), read_seeds(options.seeds), options.jobs, dials)}
    plain = planned(options)
    pair = permuted(options) if options.full else []
    results = finished(plain + pair, options.results, options.jobs)
    mixed = results[: len(plain)]
    if not write(curves(mixed), options.curves):
        print(
            "matplotlib is not installed: the curves are not drawn (make bench BENCH=curriculum does)", file=sys.stderr
        )
    pair_results = (results[-2], results[-1]) if pair else None
    return without_nan(judge(mixed, options.mixture.split(",")[0], pair_results))


def planned(options: argparse.Namespace) -> list[Settings]:
    """The runs that the options ask for, seed by seed so that pairs finish early.

    Raises:
        DestructError: a mixture, strategy or override is unknown, or the seeds are none or too many.
    """
    mixtures = importlib.import_module(options.catalogue).MIXTURES
    runs = []
    for mixture in options.mixture.split(","):
        if mixture not in mixtures:
            raise DestructError(f"--mixture: {mixture!r} is not known", f"choose of: {', '.join(mixtures)}")
        for seed in read_seeds(options.seeds):
            for strategy, overrides in read_strategies(options.strategies, options.set):
                run = Settings(mixture, list(mixtures[mixture]), strategy, seed, options.budget, overrides)
                panel = FULL_PANEL if options.full and strategy not in FIXED else None
                runs.append(replace(run, panel_size=panel, **shared(options)))
    for run in runs:
        run.config()
    return runs


def shared(options: argparse.Namespace) -> dict[str, Any]:
    """Fields of Settings that all runs have alike; in short runs everything comes more often."""
    tenth = options.budget // 10
    return {
        "catalogue": options.catalogue,
        "warmup_tokens": min(Settings.warmup_tokens, tenth),
        "round_tokens": options.round or min(Settings.round_tokens, tenth),
        "evaluate_tokens": min(Settings.evaluate_tokens, options.budget // 8),
    }


def read_strategies(names: str, overrides: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """Strategies and what is overridden for each, from `--strategies` and `--set`.

    Raises:
        DestructError: an override is not KEY=VALUE, or a strategy that reads none has one.
    """
    found = []
    for name, own in re.findall(r"([^,\[\]]+)(?:\[([^\]]*)\])?", names):
        if name in BARE and own:
            raise DestructError(f"--strategies: {name}[{own}] reads no override", f"write {name}")
        given = [*([] if name in FIXED else overrides), *filter(None, own.split(","))]
        found.append((name, dict(map(read_override, given))))
    return found


def read_override(text: str) -> tuple[str, Any]:
    """KEY=VALUE, the value as YAML has it."""
    name, equals, value = text.partition("=")
    if not equals:
        raise DestructError(f"--set {text}: there is no =", "write KEY=VALUE, such as eta=0.25")
    return name.strip(), yaml.safe_load(value)


def read_seeds(text: str) -> list[int]:
    """`3` is the seeds 0, 1 and 2; with a comma they are named, one of them as `4,`.

    Raises:
        DestructError: there are none or more than 10.
    """
    try:
        seeds = [int(seed) for seed in text.split(",") if seed] if "," in text else list(range(int(text)))
    except ValueError:
        seeds = []
    if not 1 <= len(set(seeds)) <= MOST_SEEDS:
        raise DestructError(f"--seeds {text}: 1 to {MOST_SEEDS} seeds are needed", "write 3, or 0,1,2")
    return list(dict.fromkeys(seeds))


def permuted(options: argparse.Namespace) -> list[Settings]:
    """Two runs of second_order, the second with the sources in reverse order."""
    mixture = options.mixture.split(",")[0]
    sources = list(importlib.import_module(options.catalogue).MIXTURES[mixture])
    run = Settings(mixture, sources, "second_order", 0, min(options.budget, PERMUTED_BUDGET))
    run = replace(run, panel_size=FULL_PANEL, **shared(options))
    return [run, replace(run, sources=sources[::-1])]


def without_nan(value: Any) -> Any:
    """The same with None for numbers that are not finite, which JSON does not have."""
    if isinstance(value, dict):
        return {name: without_nan(each) for name, each in value.items()}
    if isinstance(value, list):
        return [without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the processes of the runs too, like Ctrl-C
    sys.exit(main())
