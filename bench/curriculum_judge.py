"""What the results of the curriculum benchmark say: pure functions of what `bench.curriculum_run.run` returns.

Letters: E evaluations, R rounds, S sources.  Excess is held-out nats per byte beyond what the source itself costs, the
average that over the learnable sources: all but `NOISE`.  Of the real text nobody knows the entropy: its loss counts in
the average, where a constant moves no speedup but makes a gap look smaller; so the gap is told of the known sources
alone too, and they alone can be the worst.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.curriculum_settings import Settings

Floats = NDArray[np.float64]
Result = dict[str, Any]

NOISE, HARD, TEXT = "noise", "copy", "text"
"""Names of the source that nothing can be learnt of, of the one learnt late, and of the one of unknown entropy."""
EARLY = 0.2
"""Share of the budget in which a strategy may still find out what is noise."""
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t at 97.5% for 1 to 9 degrees of freedom."""


def judge(results: Iterable[Result], main: str, reversed_pair: tuple[Result, Result] | None = None) -> dict[str, Any]:
    """The benchmark's one line: figures are means over the seeds.

    Args:
        results: finished runs of any mixtures, strategies and seeds.
        main: the mixture that `strategies` is about; figures of the others stand under `mixtures`.
        reversed_pair: two runs that differ in the order of their sources alone.
    """
    grouped: dict[str, dict[str, dict[int, Result]]] = defaultdict(lambda: defaultdict(dict))
    for result in results:
        settings = Settings(**result["settings"])
        grouped[settings.mixture][settings.label][settings.seed] = result
    tables = {
        mixture: {label: figures(runs, labels.get("uniform", {})) for label, runs in labels.items()}
        for mixture, labels in grouped.items()
    }
    clean = tables.get("clean", {}).get("second_order", {})
    return {
        "strategies": tables.pop(main, {}),
        "clean_mixture_gap": clean.get("gap"),
        "permutation_error": None if reversed_pair is None else permutation_error(*reversed_pair),
        "mixtures": tables,
    }


def figures(runs: dict[int, Result], uniform: dict[int, Result]) -> dict[str, Any]:
    """Figures of one strategy on one mixture.

    Args:
        runs, uniform: seed -> result of the strategy, and of `uniform`; what compares the two is None without the
            latter.
    """
    per_seed = {seed: finals(run) for seed, run in sorted(runs.items())}
    sources = {
        name: statistics.fmean(final[name] for final in per_seed.values()) for name in next(iter(per_seed.values()))
    }
    worst = max(known(sources), key=sources.__getitem__)
    pairs = [(runs[seed], uniform[seed]) for seed in sorted(runs) if seed in uniform]
    speedups = [speedup(run, base) for run, base in pairs]
    gaps = [average(finals(run)) / average(finals(base)) - 1 for run, base in pairs]
    known_gaps = [average(known(finals(run))) / average(known(finals(base))) - 1 for run, base in pairs]
    hard_gaps = [finals(run)[HARD] / finals(base)[HARD] - 1 for run, base in pairs if HARD in sources]
    return {
        "final_average_excess": average(sources),
        "worst_excess": sources[worst],
        "worst_source": worst,
        "hard_excess": sources.get(HARD),
        "speedup_to_uniform": interval_of_ratios(speedups),
        "speedups": speedups,
        "gap": mean_of(gaps),
        "gaps": gaps,
        "known_average_excess": average(known(sources)),
        "known_gaps": known_gaps,
        "hard_gap": mean_of(hard_gaps),
        "noise_share": mean_of([noise_share(run) for run in runs.values() if NOISE in sources]),
        "min_share": min(min_share(run) for run in runs.values()),
        "probe_overhead": statistics.fmean(probe_overhead(run) for run in runs.values()),
        "churn": statistics.fmean(churn(run) for run in runs.values()),
        "sources": sources,
        "seeds": sorted(runs),
        "budget": next(iter(runs.values()))["settings"]["budget"],
        "seconds": round(sum(run["seconds"] for run in runs.values()), 1),
    }


def learnable(names: Iterable[str]) -> list[str]:
    """All but the noise."""
    return [name for name in names if name != NOISE]


def known(excess: dict[str, float]) -> dict[str, float]:
    """Of the learnable sources whose entropy is known."""
    return {name: excess[name] for name in learnable(excess) if name != TEXT}


def average(excess: dict[str, float]) -> float:
    """Mean over the learnable sources."""
    return statistics.fmean(excess[name] for name in learnable(excess))


def average_curve(run: Result) -> tuple[Floats, Floats]:
    """Budget used, in tokens, and average excess, nats per byte: (E,) each."""
    names = run["settings"]["sources"]
    wanted = [names.index(name) for name in learnable(names)]
    excess = np.array(run["curve"]["excess"], dtype=np.float64)
    return np.array(run["curve"]["budget_used"], dtype=np.float64), excess[:, wanted].mean(1)


def finals(run: Result) -> dict[str, float]:
    """Excess of each source, the mean of the last two evaluations, nats per byte."""
    last = np.array(run["curve"]["excess"][-2:], dtype=np.float64).mean(0)
    return dict(zip(run["settings"]["sources"], last.tolist(), strict=True))


def first_reach(budget: Floats, excess: Floats, level: float) -> float | None:
    """Where a piecewise linear curve first comes down to `level`; None where it never does.

    Args:
        budget, excess: (E,) its corners, in the order of time.
    """
    below = np.flatnonzero(excess <= level)
    if not below.size:
        return None
    at = int(below[0])
    if at == 0:
        return float(budget[0])
    share = (excess[at - 1] - level) / (excess[at - 1] - excess[at])
    return float(budget[at - 1] + share * (budget[at] - budget[at - 1]))


def speedup(run: Result, uniform: Result) -> float:
    """How many times fewer tokens than `uniform` the run takes to uniform's final average excess; 0: it never does.

    Both are asked where their curve first comes down to the mean of uniform's last two evaluations, so that uniform
    itself has exactly 1: its last point is later than that, and would flatter every other strategy.
    """
    curve = average_curve(uniform)
    level = average(finals(uniform))
    wanted, taken = first_reach(*curve, level), first_reach(*average_curve(run), level)
    return 0.0 if taken is None or wanted is None else wanted / taken


def interval_of_ratios(ratios: list[float]) -> list[float | None] | None:
    """Geometric mean and its 95% interval by Student's t of the logarithms: [mean, low, high].

    None without ratios; no interval for one of them; [0, 0, None] where one is 0, as its logarithm has no bound.

    Raises:
        ValueError: more than ten ratios.
    """
    if not ratios:
        return None
    if min(ratios) <= 0:
        return [0.0, 0.0, None]
    logs = [math.log(ratio) for ratio in ratios]
    mean, freedom = statistics.fmean(logs), len(logs) - 1
    if freedom == 0:
        return [math.exp(mean), None, None]
    if freedom > len(T_QUANTILES):
        raise ValueError(f"interval_of_ratios: {len(ratios)} ratios; there are quantiles for up to 10")
    half = T_QUANTILES[freedom - 1] * statistics.stdev(logs) / math.sqrt(len(logs))
    return [math.exp(mean), math.exp(mean - half), math.exp(mean + half)]


def mean_of(numbers: list[float]) -> float | None:
    """Their mean; None of none."""
    return statistics.fmean(numbers) if numbers else None


def noise_share(run: Result) -> float:
    """Share of the noise among the tokens drawn after the first fifth of the budget.

    What was drawn by then is interpolated between two evaluations.
    """
    drawn = np.array(run["curve"]["drawn"], dtype=np.float64)
    early = EARLY * run["settings"]["budget"]
    later = [column[-1] - np.interp(early, run["curve"]["budget_used"], column) for column in drawn.T]
    return float(later[run["settings"]["sources"].index(NOISE)] / sum(later))


def weights_over_rounds(run: Result) -> Floats:
    """(R + 1, S) weights in force: those of the start, then those after each round."""
    return np.array([run["start_weights"], *run["rounds"].get("weights", [])])


def min_share(run: Result) -> float:
    """The smallest weight that was ever in force."""
    return float(weights_over_rounds(run).min())


def churn(run: Result) -> float:
    """How far the weights moved in all: the sum over rounds and sources of |w_r - w_{r-1}|."""
    return float(np.abs(np.diff(weights_over_rounds(run), axis=0)).sum())


def probe_overhead(run: Result) -> float:
    """Computation of the rounds as a share of that of training: a scored token costs a third of a trained one."""
    return run["probe_tokens"] / 3 / run["trained_tokens"]


def permutation_error(run: Result, other: Result) -> float:
    """Largest difference between the weights of two runs, round by round and source by source.

    Raises:
        ValueError: they did not make the same number of rounds.
    """
    mine, theirs = weights_over_rounds(run), weights_over_rounds(other)
    if mine.shape != theirs.shape:
        raise ValueError(f"permutation_error: weights of {mine.shape} and of {theirs.shape}")
    names = other["settings"]["sources"]
    return float(np.abs(mine - theirs[:, [names.index(name) for name in run["settings"]["sources"]]]).max())
