"""Which charts a report has, from what a run logged."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from destruct.reporting.charts import Chart, Line, css
from destruct.reporting.drawing import Drawing, draw
from destruct.reporting.log import Log, Series
from destruct.reporting.recorded import Recorded
from destruct.tracking.metrics import METRICS

BY_THEMSELVES = 60
"""Sources that are shown one by one: those that are drawn the most."""

POINTS = 9000
"""Of the charts of all sources by themselves."""

MADE = "updates made"
"""The axis of what is measured between updates: n is after the n-th."""

OPTIMISATION = {
    "ppo/policy_loss": "Policy loss",
    "ppo/value_loss": "Value loss",
    "ppo/ptx_loss": "Loss on the data (PTX)",
    "ppo/entropy": "Entropy",
    "ppo/explained_variance": "Explained variance",
    "ppo/clip_fraction": "Clipped tokens",
}
"""Figures with a chart each -> titles."""

PHASES = ("update", "generate", "score", "kl", "data", "round", "evaluate", "checkpoint", "compare")
"""Of an update, those that each has before those that come now and then."""


@dataclass(frozen=True, slots=True)
class Group:
    """Charts under one heading."""

    heading: str
    words: str
    drawings: list[Drawing]


@dataclass(frozen=True, slots=True)
class SourceCurves:
    """One source by itself."""

    name: str
    look: str  # css of its colour and dashes
    drawings: list[Drawing]


def sources_of(log: Log) -> list[str]:
    """Every source that a run ever had, in the order of the alphabet."""
    families = ("curriculum/weight/", "rollout/reward/", "validation/nats_per_token/")
    phases = ("before", "after_warmup", "ppo")
    return sorted({name for family in families for phase in phases for name in log.family(family, phase)})


def most_drawn(log: Log) -> set[str]:
    """The sources with the largest weights at their ends, BY_THEMSELVES of them."""
    last = {name: series.y[-1] for name, series in log.family("curriculum/weight/").items()}
    return set(sorted(sources_of(log), key=lambda name: -last.get(name, 0.0))[:BY_THEMSELVES])


def validation(log: Log, name: str) -> Series:
    """A figure of the validations from the end of the warm-up on, over the updates made."""
    before, later = log.series(name, "after_warmup"), log.series(name)
    return Series(np.concatenate([np.zeros(len(before)), later.x + 1]), np.concatenate([before.y, later.y]))


def groups(run: Recorded) -> list[Group]:
    """The charts of a run; those of which nothing was logged are left out."""
    log, kinds = run.log, {name: k for k, name in enumerate(sources_of(run.log))}
    until = _end(run.log)
    found = [
        ("What PPO is for", "Reward up, held-out loss no worse, the policy near its reference.", _aims(run, kinds)),
        (
            "Curriculum",
            "A round measures each source on held-out text and sets the weights.",
            [
                _of_sources(log, "curriculum/weight/", "Sampling weights", kinds, stacked=True, until=until),
                _of_sources(log, "curriculum/difficulty/", "Difficulty", kinds, until=until),
            ],
        ),
        ("Optimisation", "", _optimisation(log)),
        ("Speed", "", _costs(log)),
    ]
    drawn = [(heading, words, [draw(chart) for chart in charts if chart.drawn]) for heading, words, charts in found]
    return [Group(*group) for group in drawn if group[2]]


def by_source(run: Recorded) -> list[SourceCurves]:
    """Weight, difficulty and reward of each source by itself."""
    log, found = run.log, []
    names = sources_of(log)
    shown = most_drawn(log)
    points = max(20, min(150, POINTS // (3 * max(len(shown), 1))))
    for kind, name in [(kind, name) for kind, name in enumerate(names) if name in shown]:
        charts = [
            _one_of(log, f"curriculum/weight/{name}", "weight", kind, steps=True, until=_end(log)),
            _one_of(log, f"curriculum/difficulty/{name}", "difficulty", kind),
            _one_of(log, f"rollout/reward/{name}", "reward", kind),
        ]
        drawings = [draw(chart, points) for chart in charts if chart.drawn]
        if drawings:
            found.append(SourceCurves(name, css(kind), drawings))
    return found


def _end(log: Log) -> float:
    """Where what holds until the next update ends; what a first round sets holds for an update at least."""
    return float(max(log.updates, 1))


def _metric(name: str) -> tuple[str, str]:
    """Unit and meaning of a name, or of its family."""
    metric = METRICS.get(name) or METRICS.get(f"{name.rpartition('/')[0]}/<source>")
    return (metric.unit, metric.meaning) if metric else ("", "")


def _single(log: Log, name: str, title: str) -> Chart:
    unit, meaning = _metric(name)
    bottom = -1.0 if name == "ppo/explained_variance" else None  # a young critic's has no lower bound
    return Chart(title, unit, meaning, [Line(title, log.series(name))], bottom=bottom)


def _one_of(log: Log, name: str, title: str, kind: int, steps: bool = False, until: float | None = None) -> Chart:
    unit, meaning = _metric(name)
    line = Line(title, log.series(name), _error(log, name), kind)
    x = MADE if name.startswith("curriculum/") else "update"
    return Chart(title, unit, meaning, [line], x, steps=steps, until=until, small=True)


def _error(log: Log, name: str) -> np.ndarray | None:
    """The standard errors of a source's difficulty."""
    errors = log.series(name.replace("curriculum/difficulty/", "curriculum/difficulty_se/"))
    is_difficulty = name.startswith("curriculum/difficulty/")
    return errors.y if is_difficulty and len(errors) == len(log.series(name)) else None


def _of_sources(
    log: Log,
    family: str,
    title: str,
    kinds: dict[str, int],
    stacked: bool = False,
    until: float | None = None,
    x: str = MADE,
) -> Chart:
    unit, meaning = _metric(family + "x")
    series = log.family(family)
    lines = [Line(name, one, _error(log, family + name), kinds[name]) for name, one in series.items()]
    return Chart(title, unit, meaning, lines, x, stacked=stacked, steps=stacked, until=until)


def _aims(run: Recorded, kinds: dict[str, int]) -> list[Chart]:
    log = run.log
    bound = ("kl.bound", run.number("kl.bound"))
    losses = {name: validation(log, f"validation/nats_per_token/{name}") for name in kinds}
    lines = [Line(name, one, kind=kinds[name]) for name, one in losses.items() if len(one)]
    drift = Chart(
        "KL to the initial model", *_metric("kl/from_initial"), [Line("KL", validation(log, "kl/from_initial"))], MADE
    )
    return [
        _single(log, "rollout/reward", "Reward"),
        _of_sources(log, "rollout/reward/", "Reward by source", kinds, x="update"),
        Chart("KL to the reference", *_metric("kl/to_reference"), [_of(log, "kl/to_reference", "KL")], bound=bound),
        Chart(
            "Validation loss, mean",
            *_metric("validation/mean"),
            [Line("mean", validation(log, "validation/mean"))],
            MADE,
        ),
        Chart("Validation loss by source", *_metric("validation/nats_per_token/x"), lines, MADE),
        _terms(log),
        _single(log, "rollout/response_tokens", "Length of a response"),
        drift,
    ]


def _of(log: Log, name: str, title: str, kind: int = 0) -> Line:
    return Line(title, log.series(name), kind=kind)


def _terms(log: Log) -> Chart:
    lines = [Line(name, one, kind=k) for k, (name, one) in enumerate(log.family("rollout/term/").items())]
    return Chart("Reward terms", "1", METRICS["rollout/term/<term>"].meaning, lines)


def _optimisation(log: Log) -> Sequence[Chart]:
    norms = [_of(log, "ppo/policy_grad_norm", "policy"), _of(log, "ppo/value_grad_norm", "value", 1)]
    beta = log.series("kl/coef")
    warmup = log.series("warmup/lm_loss", "warmup")
    charts = [_single(log, name, title) for name, title in OPTIMISATION.items()]
    charts += [Chart("Gradient norms", "norm", "before clipping, mean over steps", norms)]
    if len(np.unique(beta.y)) > 1:
        charts.append(_single(log, "kl/coef", "KL coefficient"))
    charts.append(
        Chart("Warm-up", *_metric("warmup/lm_loss"), [Line("loss", warmup)], "warm-up step"),
    )
    return charts


def _costs(log: Log) -> Sequence[Chart]:
    times = {name: log.series(f"time/{name}") for name in PHASES}
    lines = [Line(name, one, kind=k) for k, (name, one) in enumerate(times.items()) if len(one)]
    memory = [
        _of(log, f"memory/{name}", words, kind)
        for kind, (name, words) in enumerate({"peak_rss_mib": "main memory", "peak_gpu_mib": "GPU"}.items())
        if len(log.series(f"memory/{name}"))
    ]
    return [
        _single(log, "time/tokens_per_s", "Throughput"),
        Chart(
            "Where the time goes", "s", "of each phase of an update", lines, stacked=True, steps=True, until=_end(log)
        ),
        Chart("Peak memory", "MiB", "of the largest rank", memory),
    ]
