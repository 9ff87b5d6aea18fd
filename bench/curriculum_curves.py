"""The curves of the curriculum benchmark: average excess over tokens and the weights over time, as JSON and as PNG."""

import importlib.util
import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from bench.curriculum_judge import Result, average_curve, weights_over_rounds
from bench.curriculum_settings import FIXED, Settings

DIGITS = 4


def curves(results: Iterable[Result]) -> dict[str, Any]:
    """mixture -> strategy -> its curves over the seeds.

    Each has `budget` (E,) tokens and `excess` [mean, low, high] (3, E), nats per byte, at the evaluations of the first
    seed, low and high being the least and the largest of the seeds.  Where weights move it has `round_budget` (R + 1,),
    from 0, and `weights`, source -> (R + 1,), what is in force from there on, means over the seeds.
    """
    grouped: dict[str, dict[str, list[Result]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        settings = Settings(**result["settings"])
        grouped[settings.mixture][settings.label].append(result)
    return {mixture: {label: curve(runs) for label, runs in labels.items()} for mixture, labels in grouped.items()}


def curve(runs: list[Result]) -> dict[str, Any]:
    """The curves of one strategy on one mixture, see `curves`."""
    budget = average_curve(runs[0])[0]
    excess = np.array([np.interp(budget, *average_curve(run)) for run in runs])
    found: dict[str, Any] = {
        "budget": budget.round().astype(int).tolist(),
        "excess": [_short(row) for row in (excess.mean(0), excess.min(0), excess.max(0))],
    }
    if runs[0]["settings"]["strategy"] in FIXED:
        return found
    rounds = min(len(weights_over_rounds(run)) for run in runs)
    spent = np.mean([[0, *run["rounds"].get("budget_used", [])][:rounds] for run in runs], axis=0)
    weights = np.mean([weights_over_rounds(run)[:rounds] for run in runs], axis=0)
    found["round_budget"] = spent.round().astype(int).tolist()
    found["weights"] = {
        name: _short(column) for name, column in zip(runs[0]["settings"]["sources"], weights.T, strict=True)
    }
    return found


def _short(numbers: np.ndarray) -> list[float]:
    return [float(f"{number:.{DIGITS}g}") for number in numbers]


def write(found: dict[str, Any], stem: Path, shown: str = "second_order") -> bool:
    """Write STEM.json and STEM.png; returns False where matplotlib, which draws, is not installed.

    Args:
        found: as `curves` gives it.
        shown: the strategy whose weights are drawn.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps(found, separators=(",", ":")) + "\n")
    if importlib.util.find_spec("matplotlib") is None:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(len(found), 2, figsize=(11, 4 * len(found)), squeeze=False, layout="constrained")
    for (mixture, labels), (left, right) in zip(found.items(), grid, strict=True):
        for label, drawn in labels.items():
            millions = np.array(drawn["budget"]) / 1e6
            mean, low, high = drawn["excess"]
            (line,) = left.plot(millions, mean, label=label)
            left.fill_between(millions, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        left.set(title=f"{mixture}: average excess, band over the seeds", ylabel="nats per byte", yscale="log")
        for name, weights in labels.get(shown, {}).get("weights", {}).items():
            right.plot(np.array(labels[shown]["round_budget"]) / 1e6, weights, drawstyle="steps-post", label=name)
        right.set(title=f"{mixture}: weights of {shown}", ylabel="share", ylim=(0, None))
        for axes in (left, right):
            axes.set_xlabel("million tokens, rounds charged")
            if axes.get_legend_handles_labels()[0]:
                axes.legend(fontsize="small")
    figure.savefig(stem.with_suffix(".png"), dpi=100)
    pyplot.close(figure)
    return True
