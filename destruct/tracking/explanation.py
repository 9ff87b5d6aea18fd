"""Why each source has its weight: the table that `destruct explain` prints, and the same as JSON."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from destruct.config.settings import Config
from destruct.curriculum.estimates import Floats
from destruct.curriculum.replay import Replay
from destruct.tracking.summary import null_unless_finite

REASONS = {
    "prior": "the weight of the start: none moves before the third round",
    "not measured yet": "its progress is not known, so that its target is its prior",
    "progress": "it is being learnt: what the weights follow (curriculum.signal) is beyond its error",
    "exploration": "no progress beyond its error: its part of what is left to explore with, less the longer that lasts",
    "plateau": "no certain progress, yet worse than what a compressor takes for it: it keeps its prior",
    "forgetting": "it was drawn below its prior and gets worse, so it is drawn more",
    "floor": "no more evidence than that, and held at the least weight of a source, curriculum.floor",
    "exhausted": "nothing more can be drawn of it; its weight falls to the others",
    "fixed": "a weight that does not move",
    "loss": "the higher the loss, the higher the weight",
    "excess loss": "the higher the loss above the reference model's, the higher the weight",
    "metric": "the higher the combined metric, the higher the weight",
    "advantage": "the larger the advantages of its rollouts, the higher the weight",
    "reward_variance": "the more the rewards of its rollouts vary, the higher the weight",
}
"""What a strategy may answer from `reasons()`, and what it means."""

UNITS = {"nats": "nats per token", "bits_per_byte": "bits per byte", "relative": "shares of the first metric"}
"""`curriculum.unit` in words."""

PIPED = 1000
"""Characters of a line where output is piped: none is broken, however long a source's name."""

NO_OUTCOMES = (
    "The replayed weights are what it would have set on the recorded estimates, and never an outcome: another mixture "
    "would have trained another model, and given other estimates."
)


@dataclass(frozen=True, slots=True, eq=False)
class Account:
    """What is known of a run's weights at one round."""

    folder: Path
    config: Config  # of the run
    own: Replay  # through the run's own strategy, up to that round
    reproduced: bool  # that replay set the weights of the log
    notes: list[str]  # on the log and on the replay, a line each
    asked: Config | None  # with another strategy or other dials; None where nothing else was asked for
    other: Replay | None  # through these

    @property
    def shown(self) -> Replay:
        """The replay whose target and reasons are shown."""
        return self.other or self.own

    @property
    def strategy(self) -> str:
        """Of `shown`, with the dials that were asked for."""
        run = self.config.curriculum
        if self.asked is None:
            return run.strategy
        now = self.asked.curriculum
        dials = [f"{key}={value}" for key, value in now if key != "strategy" and value != getattr(run, key)]
        return " ".join([now.strategy, *dials])

    @property
    def stability_margin(self) -> float:
        """Of `shown`; NaN where it is not known or has no meaning."""
        return self.own.rounds[-1].stability_margin if self.other is None else self.other.strategy.stability_margin


def columns(account: Account) -> dict[str, Any]:
    """What is shown of the S sources: name of the figure -> (S,) values, in the order of the sources.

    `weight` is the log's, `replayed` what `shown` sets, `target` and `reason` are those of `shown`; `tokens` were drawn
    up to the round, `drawn` is their share.
    """
    rounds, shown = account.own.rounds, account.shown
    latest = rounds[-1]
    tokens = np.sum([recorded.estimates.tokens for recorded in rounds], axis=0)
    measured = ("difficulty", "difficulty_se", "progress", "progress_se", "epochs")
    return {
        **{figure: getattr(latest.estimates, figure) for figure in measured},
        "prior": np.array([account.config.data.prior[name] for name in latest.names]),
        "weight": latest.weights,
        "replayed": shown.weights[-1],
        "target": latest.target if account.other is None else shown.strategy.target,
        "drawn": tokens / max(float(np.sum(tokens)), 1.0),
        "tokens": tokens,
        "reason": shown.strategy.reasons(),
    }


def as_json(account: Account) -> dict[str, Any]:
    """Everything as plain values, null for what is not finite; weights of every round too."""
    rounds, latest = account.own.rounds, account.own.rounds[-1]
    table = {figure: list(map(_plain, values)) for figure, values in columns(account).items()}
    sources = {name: {figure: values[k] for figure, values in table.items()} for k, name in enumerate(latest.names)}
    content = {
        "run": str(account.folder),
        "strategy": account.strategy,
        "of_the_run": account.other is None,
        "reproduced": account.reproduced,
        "round": latest.index,
        "update": latest.update,
        "rounds": len(rounds),
        "unit": UNITS[account.config.curriculum.unit],
        "panel_size": latest.panel_size,
        "probe_share": latest.probe_share,
        "stability_margin": account.stability_margin,
        "sources": sources,
        "history": [
            {
                "round": recorded.index,
                "weight": dict(zip(recorded.names, recorded.weights.tolist(), strict=True)),
                "replayed": dict(zip(recorded.names, weights.tolist(), strict=True)),
            }
            for recorded, weights in zip(rounds, account.shown.weights, strict=True)
        ],
        "notes": account.notes,
    }
    return null_unless_finite(content)


def _plain(value: Any) -> Any:
    return value if isinstance(value, str) else float(value)


def show(account: Account) -> None:
    """Print the table, and below it what its figures and words mean; plain columns where output is piped."""
    terminal = Console().is_terminal
    console = Console(width=None if terminal else PIPED, highlight=False, markup=False)
    latest, rounds = account.own.rounds[-1], account.own.rounds
    what = (
        account.strategy
        if account.other is None
        else f"{account.config.curriculum.strategy}, replayed: {account.strategy}"
    )
    console.print(f"{account.folder}: {what}; round {latest.index}, after {latest.update} updates", soft_wrap=True)
    for table in _tables(account, console):
        console.print(table)
    margin = "not known, or without a meaning for this strategy"
    if not math.isnan(account.stability_margin):
        margin = f"{account.stability_margin:.3f}, below 0 the weights swing ever wider"
    unit = UNITS[account.config.curriculum.unit]
    lines = [
        f"difficulty: held-out loss, {unit}; progress: its fall per round; ± a standard error, - not known yet",
        "target: the share that the estimates argue for; drawn: share of the tokens so far",
        f"rounds: {len(rounds)}; panel: {latest.panel_size} held-out windows per source; tokens scored by rounds per "
        f"token trained on: {latest.probe_share:.3f}",
        f"stability margin: {margin}",
        *account.notes,
        *(f"{word}: {REASONS[word]}" for word in dict.fromkeys(account.shown.strategy.reasons())),
    ]
    if account.other is None and not account.reproduced:
        lines.append("The weights and targets are the log's; the reasons are the replay's.")
    for line in lines if account.other is None else [*lines, NO_OUTCOMES]:
        console.print(line, soft_wrap=True)


def _tables(account: Account, console: Console) -> list[Table]:
    """One table where the screen is wide enough, else one of what was measured and one of the weights."""
    c = columns(account)
    measured = {
        "difficulty": _with_errors(c["difficulty"], c["difficulty_se"]),
        "progress": _with_errors(c["progress"], c["progress_se"]),
        "drawn": _shares(c["drawn"]),
        "tokens": [f"{tokens:,.0f}" for tokens in c["tokens"]],
        "epochs": [f"{epochs:.2f}" for epochs in c["epochs"]],
    }
    set_by = {
        "weight": _shares(c["weight"]),
        **({} if account.other is None else {"replayed": _shares(c["replayed"])}),
        "prior": _shares(c["prior"]),
        "target": _shares(c["target"]),
        "reason": c["reason"],
    }
    names = account.own.rounds[-1].names
    whole = _table(names, measured | set_by, console.is_terminal)
    # Measured as if nothing bounded it.
    if console.measure(whole, options=console.options.update(width=PIPED)).maximum <= console.width:
        return [whole]
    return [_table(names, part, console.is_terminal) for part in (measured, set_by)]


def _table(names: tuple[str, ...], cells: dict[str, list[str]], borders: bool) -> Table:
    table = Table() if borders else Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("source", overflow="fold")
    for heading in cells:
        table.add_column(heading, justify="left" if heading == "reason" else "right", no_wrap=heading != "reason")
    for row in zip(names, *cells.values(), strict=True):
        table.add_row(*row)
    return table


def _shares(values: Floats) -> list[str]:
    return [f"{value:.3f}" for value in values]


def _with_errors(values: Floats, errors: Floats) -> list[str]:
    """`value ± error`, all to the digit in which the smallest error has its second figure, at least three; a value
    whose error is not known is none."""
    known = errors[np.isfinite(errors) & (errors > 0)]
    digits = max(3, 1 - math.floor(math.log10(np.min(known)))) if known.size else 3
    return [
        f"{value:.{digits}f} ± {error:.{digits}f}" if np.isfinite(value) and np.isfinite(error) else "-"
        for value, error in zip(values, errors, strict=True)
    ]
