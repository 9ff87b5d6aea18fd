"""Logs as `record_round` writes them, of made-up losses under real draws, and what `destruct explain` says of them."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from destruct.curriculum.dials import strategy_from
from destruct.curriculum.estimates import Estimates
from destruct.explain import main
from destruct.recording import record_round
from destruct.run import Run
from destruct.tracking.json_lines import JsonLines
from destruct.tracking.sinks import Sinks
from tests.tiny import tiny_run

NAMES = ["arithmetic", "noise"]
SMALL = "data.sources.noise={embedded: noise, learnable: false, max_documents: 2, on_exhausted: drop}"
"""One document to train on: some dozens of pieces."""
REFERENCE = {"arithmetic": 2.5, "noise": 4.0}
ROUNDS = 9


def measured(index: int, run: Run, tokens: np.ndarray) -> Estimates:
    """Two sources that are learnt, one the faster; before the third round no progress is known."""
    noise = np.random.default_rng(index).normal(0, 0.01, (8, 2))
    loss = np.array([5 - 0.1 * index, 4.2]) + noise[0]
    known = index >= 2
    return Estimates(
        index,
        difficulty=loss,
        difficulty_se=0.02 + noise[1] ** 2,
        variance=0.3 + noise[2],
        metric=loss,
        progress=np.array([0.06, 0.04]) + noise[3] if known else np.zeros(2),
        progress_se=0.004 + noise[4] ** 2 if known else np.full(2, math.inf),
        batches=1 if index else 0,
        compressed=np.array([3.0, 4.5]) if index >= 3 else np.full(2, math.nan),
        gap_growth=np.array([0.0, math.nan]),
        gap_growth_se=np.array([0.0, math.inf]),
        tokens=tokens,
        share=tokens / max(tokens.sum(), 1),
        epochs=run.mixture.epochs,
        exhausted=np.isin(NAMES, run.mixture.exhausted).astype(float),
        advantage=np.array([0.5, math.nan]),
        advantage_se=np.array([0.1, math.inf]),
        reward_variance=np.array([0.02, math.nan]),
        reward_variance_se=np.array([math.inf, math.inf]),
    )


def record(run: Run, folder: Path, strategy: str) -> None:
    """Rounds as a run records them, of which the last ones are after the end of `noise`; the drawing is real."""
    c = run.config.curriculum.model_copy(update={"strategy": strategy, "reference_loss": REFERENCE})
    run.curriculum.strategy = strategy_from(c, run.config.data.prior, np.array([30_000.0, 7_000.0]))
    run.mixture = run.mixture.afresh()
    run.sinks.close()
    run.sinks = Sinks(JsonLines(folder, {}))
    tokens = np.zeros(2)
    for run.state.update in range(ROUNDS):
        estimates = measured(run.state.update, run, tokens)
        run.curriculum.strategy.observe(estimates)
        record_round(run, estimates)
        # After round 5 noise alone is drawn, to its end.
        weights, batches = ([0.0, 1.0], 8) if run.state.update == 5 else (run.curriculum.weights, 2)
        drawn = [run.mixture.draw(16, weights).source for _ in range(batches)]
        tokens = np.bincount(np.concatenate(drawn), minlength=2) * 11.0
    text = (run.folder / "resolved.yaml").read_text()
    resolved = text.replace("strategy: second_order", f"strategy: {strategy}")
    losses = f"reference_loss: {json.dumps(REFERENCE)}" if strategy == "doremi" else "reference_loss: {}"
    (folder / "resolved.yaml").write_text(resolved.replace("reference_loss: {}", losses))


def record_runs(folder: Path, strategies: list[str]) -> None:
    """A folder with the log of one run per strategy, by its name."""
    with tiny_run(folder, SMALL, "data.sources.arithmetic.prior=3") as run:
        for strategy in strategies:
            (folder / strategy).mkdir()
            record(run, folder / strategy, strategy)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines() if "curriculum/" in line]


def write(folder: Path, entries: list[dict[str, Any]]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def said(capsys, *arguments: object) -> str:
    assert main(list(map(str, arguments))) == 0
    out, err = capsys.readouterr()
    assert not err
    return out


def told(capsys, *arguments: object) -> dict[str, Any]:
    return json.loads(said(capsys, *arguments, "--json"))


def refused(capsys, *arguments: object) -> tuple[str, str]:
    """Problem and remedy of what must end with exit code 2."""
    assert main(list(map(str, arguments))) == 2
    out, err = capsys.readouterr()
    problem, remedy = err.splitlines()
    assert not out
    return problem.removeprefix("destruct: "), remedy.removeprefix("  remedy: ")
