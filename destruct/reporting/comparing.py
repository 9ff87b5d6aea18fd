"""Several runs beside one another: settings that differ, outcomes, curves over one another."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from destruct.config.base import scalar
from destruct.configuring import diff
from destruct.reporting import outcome
from destruct.reporting.charts import Chart, Line, css
from destruct.reporting.curves import MADE, sources_of, validation
from destruct.reporting.drawing import Drawing, draw
from destruct.reporting.log import Series
from destruct.reporting.recorded import Recorded
from destruct.reporting.scales import duration, full, short
from destruct.tracking.metrics import METRICS

OVERLAID = {
    "rollout/reward": "Reward",
    "kl/to_reference": "KL to the reference",
    "validation/mean": "Validation loss, mean",
    "kl/from_initial": "KL to the initial model",
    "ppo/entropy": "Entropy",
    "ppo/explained_variance": "Explained variance",
    "ppo/policy_loss": "Policy loss",
    "ppo/value_loss": "Value loss",
    "ppo/ptx_loss": "Loss on the data (PTX)",
    "time/tokens_per_s": "Throughput",
}
"""Figures of which the curves of all runs lie over one another -> titles."""

THEIR_OWN = ("run.name", "run.folder", "run.resume")
"""Keys that say nothing of what was run."""


@dataclass(frozen=True, slots=True)
class Table:
    """Heads, rows, and what it is in words."""

    heads: list[str]
    rows: list[list[str]]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the page holds of several runs."""

    runs: list[tuple[str, str, Recorded]]  # label, css and run
    sentence: list[str]
    outcomes: Table
    settings: Table
    losses: Table  # validation loss by source, the last one of each run
    drawings: list[Drawing]
    weights: list[Drawing]  # of each run by itself
    prompts: list[tuple[str, str, list[tuple[str, str, str]]]]  # topic, prompt, label and when and continuation


def compare(runs: Sequence[Recorded]) -> Comparison:
    """Lay several runs beside one another, in the order in which they were named."""
    names = labels(runs)
    charts = [_overlaid(runs, names, name, title) for name, title in OVERLAID.items()]
    return Comparison(
        [(label, css(k), run) for k, (label, run) in enumerate(zip(names, runs, strict=True))],
        _sentence(runs, names),
        _outcomes(runs, names),
        _settings(runs, names),
        _losses(runs, names),
        [draw(chart) for chart in charts if chart.drawn],
        [draw(chart) for chart in map(_weights, runs, names) if chart.drawn],
        _prompts(runs, names),
    )


def labels(runs: Sequence[Recorded]) -> list[str]:
    """A name for each; its folder, where two would have the same."""
    names = [run.folder.resolve().name for run in runs]
    return [name if names.count(name) == 1 else str(run.folder) for name, run in zip(names, runs, strict=True)]


def _sentence(runs: Sequence[Recorded], names: list[str]) -> list[str]:
    """Which is ahead, where they can be compared: their means are over the same sources."""
    if len({tuple(sources_of(run.log)) for run in runs}) > 1:
        return ["They have other sources, so that their means are of different things."]
    losses = {name: outcome.loss(run).after for name, run in zip(names, runs, strict=True)}
    rewards = {name: outcome.reward(run).after for name, run in zip(names, runs, strict=True)}
    known = [{name: x for name, x in figures.items() if np.isfinite(x)} for figures in (losses, rewards)]
    clauses = []
    if known[0]:
        least = min(known[0], key=known[0].__getitem__)
        clauses.append(f"The lowest validation loss at the end is that of {least}: {short(known[0][least])}.")
    if known[1]:
        most = max(known[1], key=known[1].__getitem__)
        clauses.append(f"The highest reward at the end is that of {most}: {short(known[1][most])}.")
    return clauses


def _overlaid(runs: Sequence[Recorded], names: list[str], name: str, title: str) -> Chart:
    between = name.startswith("validation/") or name == "kl/from_initial"
    lines = []
    for kind, (label, run) in enumerate(zip(names, runs, strict=True)):
        series = validation(run.log, name) if between else run.log.series(name)
        if len(series):
            lines.append(Line(label, series, kind=kind))
    bounds = {run.number("kl.bound") for run in runs}
    bound = ("kl.bound", bounds.pop()) if name == "kl/to_reference" and len(bounds) == 1 else None
    metric, bottom = METRICS[name], -1.0 if name == "ppo/explained_variance" else None
    return Chart(title, metric.unit, metric.meaning, lines, MADE if between else "update", bound, bottom=bottom)


def _weights(run: Recorded, label: str) -> Chart:
    kinds = {name: k for k, name in enumerate(sources_of(run.log))}
    series: dict[str, Series] = run.log.family("curriculum/weight/")
    lines = [Line(name, one, kind=kinds[name]) for name, one in series.items()]
    until = float(max(run.log.updates, 1))
    return Chart(f"Weights of {label}", "share", "sampling weight", lines, MADE, stacked=True, steps=True, until=until)


def _outcomes(runs: Sequence[Recorded], names: list[str]) -> Table:
    heads = ["run", "state", "updates", "reward", "validation loss", "best", "largest KL", "bound", "time", "tokens/s"]
    rows = []
    for label, run in zip(names, runs, strict=True):
        best, summary = outcome.best_validation(run), run.summary or {}
        speed = run.log.series("time/tokens_per_s").y
        median = float(np.nanmedian(speed)) if np.isfinite(speed).any() else np.nan
        times = outcome.breaches(run)
        seconds = summary.get("seconds")
        rows.append(
            [
                label,
                outcome.state(run)[0],
                f"{run.log.updates:,}",
                outcome.reward(run).words(),
                outcome.loss(run).words(),
                f"{short(best[1], 5)} after {best[0]:,}" if best else "–",
                short(outcome.largest_kl(run)),
                short(run.number("kl.bound")) + (f", passed {times}×" if times else ""),
                duration(seconds) if isinstance(seconds, int | float) else "–",
                short(median, 3),
            ]
        )
    return Table(heads, rows)


def _settings(runs: Sequence[Recorded], names: list[str]) -> Table:
    first, *others = sides = _sides(runs)
    found = [key for other in others for key in diff.differences(first, other)]
    keys = [key for key in dict.fromkeys(found) if key not in THEIR_OWN]
    rows = [[key, *(scalar(side.values[key]) if key in side.values else "absent" for side in sides)] for key in keys]
    return Table(["key", *names], rows)


def _sides(runs: Sequence[Recorded]) -> list[diff.Side]:
    """What each run was given; what its engines were given too, where all have that."""
    sides = [run.settings for run in runs]
    return [diff.with_engines(side, side) for side in sides] if all(side.engines for side in sides) else sides


def _losses(runs: Sequence[Recorded], names: list[str]) -> Table:
    sources = list(dict.fromkeys(name for run in runs for name in sources_of(run.log)))
    rows = []
    for name in [*sorted(sources), "mean"]:
        figure = "validation/mean" if name == "mean" else f"validation/nats_per_token/{name}"
        rows.append([name, *(full(outcome.loss(run, figure).after) for run in runs)])
    return Table(["source", *names], rows)


def _prompts(runs: Sequence[Recorded], names: list[str]) -> list[tuple[str, str, list[tuple[str, str, str]]]]:
    asked = dict.fromkeys(prompt for run in runs for prompt in run.samples.prompts)
    found = []
    for topic, text in asked:
        said = [(label, run.samples.prompts.get((topic, text))) for label, run in zip(names, runs, strict=True)]
        found.append((topic, text, [(label, last[-1].when, last[-1].text) for label, last in said if last]))
    return found
